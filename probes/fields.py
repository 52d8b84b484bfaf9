"""Types of the fields that manifests are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Probe and vector names: safe as a metric label, a file name and a URL segment."""
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Words for people, in one line."""
Position = Annotated[int, Field(ge=0, lt=1 << 31)]
"""Of a token in its sequence, or a number of tokens: what fits an int32 anywhere."""
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in lower-case hexadecimal."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Scoring = Literal["logit", "projection", "cosine", "log_odds", "level", "rms_norm", "layer_norm", "members"]
"""How the kind's numbers become a score; which go with which kind: `probes.kinds.KINDS`."""


class Record(BaseModel):
    """Immutable, and refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
