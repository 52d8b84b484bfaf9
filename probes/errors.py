"""Every exception that the probe library raises on purpose.

    ProbeError
    ├── ArtifactError            a file that is no probe artifact, or a broken one
    │   ├── TruncatedArtifact    shorter than its own header says
    │   ├── OversizedArtifact    beyond the limits on file, header or number of tensors
    │   ├── UnsafeFormat         pickle, zip, torch, numpy ... : never opened
    │   ├── MalformedArtifact    not parseable as safetensors
    │   ├── TensorInvalid        a tensor is missing, unknown, or of the wrong dtype or shape
    │   ├── NonFinite            a tensor holds NaN or infinity
    │   ├── ManifestInvalid      the manifest is missing or breaks the schema
    │   ├── DigestMismatch       the tensors are not those that the manifest was written for
    │   ├── GoldenMismatch       the golden inputs do not give the golden scores
    │   └── NotConvertible       another project's probe that no kind of ours computes exactly
    ├── BindingError             a sound artifact, and the wrong model for it
    │   ├── Unbound              the artifact names no model
    │   ├── ModelMismatch        another model, chat template or weights
    │   ├── DimensionMismatch    another d_model, or hidden states of the wrong shape
    │   └── LayerMismatch        a layer that the model has not, or its last block
    ├── DataError                labelled conversations or activations that cannot be used
    │   ├── DatasetInvalid       a line of the file, a missing label, one class only
    │   ├── CollectionInvalid    a folder of activations: unfinished, damaged, or without what is asked of it
    │   └── SplitLeak            a group on both sides of a split
    ├── FlagNeeded               another project's file leaves open what a flag must say
    └── CalibrationError         no threshold can be given, or one is needed and absent

Each message is one line: what, the value found, the remedy.
"""


class ProbeError(Exception):
    """Base of all errors of the probe library."""

    def __str__(self) -> str:
        # A message may quote a path or a name from a file: it stays one line and cannot drive a terminal.
        text = super().__str__()
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ArtifactError(ProbeError):
    """The file is not a usable probe artifact."""


class TruncatedArtifact(ArtifactError):
    """The file ends before its header says it does."""


class OversizedArtifact(ArtifactError):
    """The file, its header or its number of tensors exceeds the limits."""


class UnsafeFormat(ArtifactError):
    """The bytes are those of a format that may run code or is not ours; it was not opened."""


class MalformedArtifact(ArtifactError):
    """The bytes cannot be parsed as safetensors."""


class TensorInvalid(ArtifactError):
    """A tensor is missing, unknown, or of the wrong dtype or shape."""


class NonFinite(ArtifactError):
    """A tensor holds NaN or infinity."""


class ManifestInvalid(ArtifactError):
    """The manifest is missing or breaks the schema."""


class DigestMismatch(ArtifactError):
    """The tensors differ from those that the manifest was written for."""


class GoldenMismatch(ArtifactError):
    """The golden inputs do not reproduce the golden scores."""


class NotConvertible(ArtifactError):
    """A sound file of another project that reads another tensor, or computes what no kind here does."""


class BindingError(ProbeError):
    """The artifact is sound and does not fit the model it is attached to."""


class Unbound(BindingError):
    """The artifact names no model."""


class ModelMismatch(BindingError):
    """The model, its chat template or its weights are not those the probe was calibrated on."""


class DimensionMismatch(BindingError):
    """The residual stream has another width or shape than the probe reads."""


class LayerMismatch(BindingError):
    """The probe reads a block that the model does not have, or its last one unverified."""


class DataError(ProbeError):
    """Labelled conversations or activations that cannot be used."""


class DatasetInvalid(DataError):
    """A line, a label or a class of the data set is missing or wrong."""


class CollectionInvalid(DataError):
    """A folder of collected activations is unfinished or damaged, or does not hold what is asked of it."""


class SplitLeak(DataError):
    """A group (entity) occurs on both sides of a split."""


class FlagNeeded(ProbeError):
    """A file of another project that can be read in more than one way; the message has the flag to add."""


class CalibrationError(ProbeError):
    """No threshold can be given, or one is needed and absent."""
