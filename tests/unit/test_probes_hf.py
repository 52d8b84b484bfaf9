"""Activations, answers and the commands, on a tiny random Llama."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import probes
from probes import cli, dataset, fitting, hf, testing
from probes.dataset import Conversation
from probes.fitting.lens_source import final_hidden, lens_source
from probes.manifest import TokenMask

torch.set_num_threads(1)

WORDS = ["you", "are", "a", "clerk", "the", "bridge", "is", "sound", "cracked", "how", "well", "thanks"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    marks = ["<pad>", "<end>", "<unk>", "<system>", "<user>", "<assistant>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(marks + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(marks + WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model_dir: Path) -> hf.LoadedModel:
    return hf.load(model_dir)


def chat(n: int, question: str, answer: str, **fields: object) -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation.model_validate({"id": f"c{n}", "messages": turns, **fields})


CHATS = [
    chat(0, "how is the bridge", "the bridge is sound"),
    chat(1, "how are you", "well thanks"),
    chat(2, "is the bridge cracked", "the bridge is cracked thanks well"),
]


def test_what_a_tuned_lens_imitates_lies_beside_its_rows(loaded: hf.LoadedModel) -> None:
    chats = [chat(0, "how is the bridge", "the bridge is sound"), chat(1, "are you well", "well thanks")]
    rows = fitting.token_rows(hf.activations(loaded, chats, [1]), TokenMask(), (1,))
    final = final_hidden(loaded, chats, TokenMask())
    assert final.shape == (len(rows.hidden), 16)
    ids, prompt_length = hf.token_ids(loaded, chats[1])
    with torch.no_grad():
        whole = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(final[rows.offsets[1] :], whole[prompt_length:], rtol=1e-4, atol=1e-4)
    source = replace(lens_source(loaded, tracked=(3, 4)), final=final)
    tensors = fitting.fit("tuned_lens", rows, [0, 0], fitting.Options(lens=source, rank=2, epochs=2))
    assert tensors["up"].shape == (1, 16, 2)


def test_activations_are_the_residual_after_the_block(loaded: hf.LoadedModel, model_dir: Path) -> None:
    seen: list[torch.Tensor] = []
    ids, prompt_length = hf.token_ids(loaded, CHATS[0])
    assert (ids, prompt_length) == hf.token_ids(hf.load_tokenizer(model_dir), CHATS[0])
    handle = loaded.blocks()[1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        loaded.model(torch.tensor([ids]))
    handle.remove()
    found = hf.activations(loaded, CHATS, (1, 2), batch_size=2)
    assert found[0].hidden.shape == (len(ids), 2, 16)
    assert found[0].hidden.dtype == torch.float32
    torch.testing.assert_close(found[0].at((1,))[:, 0], seen[0][0], rtol=1e-4, atol=1e-4)
    assert found[0].prompt_length == prompt_length == 7
    assert [len(f.hidden) - f.prompt_length for f in found] == [4, 2, 6]


def test_kept_tail_is_the_same_rows(loaded: hf.LoadedModel) -> None:
    whole, tail = hf.activations(loaded, CHATS, (0,)), hf.activations(loaded, CHATS, (0,), prompt_tail=1)
    for all_rows, kept in zip(whole, tail, strict=True):
        assert kept.positions[0] == all_rows.prompt_length - 1
        torch.testing.assert_close(kept.hidden, all_rows.hidden[all_rows.prompt_length - 1 :])
        assert kept.mask(TokenMask()).tolist() == [False] + [True] * (len(kept.hidden) - 1)


@pytest.mark.parametrize("layer", [3, 4, -1])
def test_last_block_and_layers_beyond_are_refused(loaded: hf.LoadedModel, layer: int) -> None:
    with pytest.raises(probes.LayerMismatch, match="from 0 to 2"):
        hf.activations(loaded, CHATS, (0, layer))


@pytest.mark.parametrize("token", [-1, 18])
def test_tokens_of_another_tokenizer_are_refused(loaded: hf.LoadedModel, token: int) -> None:
    foreign = chat(9, "how is the bridge", "sound", answer_ids=(2, token))
    with pytest.raises(probes.DataError, match=rf"token ids from .*{token}.*tiny has 18 ids"):
        hf.activations(loaded, [foreign], (0,))


def test_answers_do_not_depend_on_the_batch_and_their_last_token_is_not_fed(loaded: hf.LoadedModel) -> None:
    prompts = [c.prompt for c in CHATS]
    together = hf.generate(loaded, prompts, max_new_tokens=8)
    alone = [hf.generate(loaded, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert together == alone
    assert all(len(ids) <= 7 for _, ids in together)
    text, ids = max(together, key=lambda answer: len(answer[1]))
    assert len(ids) == 7  # never ended: the eighth sampled token was not fed
    on_policy = chat(9, "how is the bridge", text, answer_ids=ids)
    fed, prompt_length = hf.token_ids(loaded, on_policy)
    assert fed[prompt_length:] == list(ids)


def test_steering_adds_the_vector_after_the_block_and_is_taken_off_again(loaded: hf.LoadedModel) -> None:
    prompts = [c.prompt for c in CHATS]
    before = hf.generate(loaded, prompts, max_new_tokens=6)
    vector = 1e3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    steered = hf.generate(loaded, prompts, max_new_tokens=6, steering=(1, vector))
    assert steered != before
    assert hf.generate(loaded, prompts, max_new_tokens=6, steering=(1, torch.zeros(16))) == before
    assert hf.generate(loaded, prompts, max_new_tokens=6) == before


def test_randomised_model_is_seeded_and_another(loaded: hf.LoadedModel) -> None:
    one, two, other = (hf.activations(hf.randomised(loaded, s), CHATS[:1], (0,))[0].hidden for s in (0, 0, 1))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, hf.activations(loaded, CHATS[:1], (0,))[0].hidden)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 4, "num_hidden_layers": 2, "model_type": "llama"}')
    with pytest.raises(probes.BindingError, match="transformers cannot load it"):
        hf.load(tmp_path)


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_dataset_round_trip_keeps_further_keys(tmp_path: Path) -> None:
    chats = [
        chat(1, "how", "well", label=1, group="g", split="test", colour="red"),
        chat(2, "how", "well", label=0),
    ]
    dataset.write(tmp_path / "d.jsonl", chats)
    again = dataset.read(tmp_path / "d.jsonl")
    assert again == chats
    assert dataset.digest(again) == dataset.digest(reversed(chats))
    assert dataset.groups(again) == ["g", "id:c2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 conversations"),
        ('{"id": "a"', r"line 1: .*JSON"),
        ('{"id": "a", "messages": []}', r"line 1: messages"),
        (
            '{"id":"a","messages":[{"role":"assistant","content":"x"},{"role":"user","content":"x"}]}',
            "end with the",
        ),
        (
            '{"id":"a","messages":[{"role":"user","content":"x"},{"role":"assistant","content":"x"}],"label":2}',
            "label",
        ),
        (
            '{"id":"a","messages":[{"role":"user","content":"x"},{"role":"assistant","content":"x"}]}\n' * 2,
            "1 ids occur",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "d.jsonl").write_text(text)
    with pytest.raises(probes.DatasetInvalid, match=words) as caught:
        dataset.read(tmp_path / "d.jsonl")
    assert "\n" not in str(caught.value)


def test_unusable_labels_and_leaks_are_refused() -> None:
    with pytest.raises(probes.DatasetInvalid, match="1 conversations without a label"):
        dataset.labels([chat(0, "how", "well"), chat(1, "how", "well", label=1)])
    with pytest.raises(probes.DatasetInvalid, match="all 2 labels are 1"):
        dataset.labels([chat(0, "how", "well", label=1), chat(1, "how", "well", label=1)])
    with pytest.raises(probes.SplitLeak, match="'g' is in train and in test"):
        dataset.check_disjoint(train=[chat(0, "a", "a", group="g")], test=[chat(1, "a", "a", group="g")])
    with pytest.raises(probes.DatasetInvalid, match="split 'test'"):
        dataset.of_split([chat(0, "a", "a")], "test")


def labelled_rows(n: int) -> list[dict[str, object]]:
    rows = []
    for i in range(n):
        answer = (
            f"the bridge is {'cracked' if i % 2 else 'sound'} {' '.join(np.array(WORDS)[[i % 12, i % 7]])}"
        )
        split = ("train", "validation", "test")[i % 3]
        rows.append(
            {**chat(i, "how is the bridge", answer, label=i % 2, group=f"g{i}", split=split).model_dump()}
        )
    return rows


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.thorough
def test_commands_from_data_to_verified_artifact(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = jsonl(tmp_path / "d.jsonl", labelled_rows(90))
    benign = [row for row in labelled_rows(480) if row["label"] == 0]
    first = jsonl(tmp_path / "b1.jsonl", benign[:120])
    second = jsonl(tmp_path / "b2.jsonl", benign[120:])
    artifact = tmp_path / "p.safetensors"
    words = ["--name", "cracks", "--concept", "deception", "--positive", "cracked", "--negative", "sound"]
    assert run("train", "--model", model_dir, "--data", data, *words, "--layers", "1,2", "-o", artifact) == 0
    trained = probes.load(artifact)
    assert trained.manifest.threshold is None
    assert trained.manifest.default_action == "observe"
    assert (
        run(
            "calibrate", artifact, "--model", model_dir, "--benign", first, "--second", second, "-o", artifact
        )
        == 0
    )
    calibrated = probes.load(artifact)
    assert calibrated.manifest.threshold is not None
    assert calibrated.manifest.default_action == "alert"
    card = tmp_path / "judged.safetensors"
    page = tmp_path / "card.html"
    judged = ["evaluate", artifact, "--model", model_dir, "--data", data, "--quick", "--report", page]
    assert run(*judged, "--min-auroc", "0.9", "--gate", "-o", card) == 1  # the words give it away
    assert "Controls that must fail" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["subject"]["name"] == "cracks"
    assert "recall at 1% FPR" in card.with_suffix(".md").read_text()
    out = capsys.readouterr()
    assert "fault: text-words: " in out.out
    assert out.err == ""
    assert run("verify", card, "--model", model_dir) == 0
    assert run("inspect", card) == 0
    assert run("inspect", card, "--json") == 0
    assert '"name": "cracks"' in capsys.readouterr().out


def test_wrong_use_is_one_line_and_writes_nothing(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.safetensors"
    one_class = jsonl(tmp_path / "one.jsonl", [{**row, "label": 1} for row in labelled_rows(9)])
    leak = jsonl(tmp_path / "leak.jsonl", [{**row, "group": "g"} for row in labelled_rows(9)])
    good = jsonl(tmp_path / "good.jsonl", labelled_rows(9))
    words = ["--name", "cracks", "--concept", "deception", "--positive", "a", "--negative", "b", "-o", out]
    train = ["train", "--model", model_dir, *words]
    cases = [
        ([*train, "--data", tmp_path / "missing"], 2, "cannot be read"),
        ([*train, "--data", one_class], 2, "both classes"),
        ([*train, "--data", leak], 2, "split by group"),
        ([*train, "--data", good, "--aggregation", "ema"], 2, "ema:ALPHA"),
        ([*train, "--data", good, "--layers", "3"], 1, "from 0 to 2"),
        ([*train[:-1], tmp_path, "--data", good], 2, "no file can be written there"),
        ([*train[:-1], good / "p.safetensors", "--data", good], 2, "no file can be written there"),
        (["verify", good], 1, "header"),
    ]
    for arguments, status, expected in cases:
        assert run(*arguments) == status
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert expected in error
        assert error.count("\n") == 1
        assert not out.exists()


def test_calibration_refuses_labelled_positives_and_too_few(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = testing.write_artifact(
        tmp_path / "p.safetensors",
        layers=(1,),
        d_model=16,
        binding=hf.load(model_dir).identity.binding(),
    )
    mixed = jsonl(tmp_path / "mixed.jsonl", labelled_rows(10))
    few = jsonl(tmp_path / "few.jsonl", [row for row in labelled_rows(10) if row["label"] == 0])
    more = jsonl(tmp_path / "more.jsonl", [row for row in labelled_rows(20)[10:] if row["label"] == 0])
    before = artifact.read_bytes()
    for benign, words in ((mixed, "must not hold the concept"), (few, "at least 99")):
        common = ["--model", model_dir, "--second", more, "-o", artifact]
        assert run("calibrate", artifact, "--benign", benign, *common) in (1, 2)
        assert words in capsys.readouterr().err
    assert artifact.read_bytes() == before


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "calibrate", "evaluate", "inspect", "verify"):
        with pytest.raises(SystemExit) as ended:
            run(command, "--help")
        assert ended.value.code == 0
        assert f"probewatch {command} " in capsys.readouterr().out


def test_one_benign_set_is_dealt_and_the_rate_becomes_flags_a_day(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = testing.write_artifact(
        tmp_path / "p.safetensors", layers=(1,), d_model=16, binding=hf.load(model_dir).identity.binding()
    )
    benign = jsonl(tmp_path / "b.jsonl", [row for row in labelled_rows(80) if row["label"] == 0])
    common = ["calibrate", artifact, "--model", model_dir, "--benign", benign, "-o", artifact]
    assert run(*common, "--fpr", "0.05", "--requests-per-day", "500") == 0
    said = capsys.readouterr().out
    assert "At 500 requests a day" in said
    manifest = probes.load(artifact).manifest
    assert manifest.calibration is not None
    assert (manifest.calibration.n, manifest.calibration.realised_n) == (20, 20)
    assert "false flags a day (expected)" in json.dumps(manifest.metrics["benign_traffic"])
    before = artifact.read_bytes()
    assert run(*common, "--fpr", "0.01") == 1
    assert "give at least 99" in capsys.readouterr().err
    assert run("calibrate", artifact, "--benign", benign, "-o", artifact) == 2
    assert "give --model" in capsys.readouterr().err
    assert artifact.read_bytes() == before


def test_a_stop_needs_the_statistic_that_a_stop_acts_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = testing.write_artifact(tmp_path / "p.safetensors", statistic="final")
    assert run("calibrate", artifact, "--benign", "absent", "--action", "stop", "-o", artifact) == 1
    assert "running_sup" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_probe_is_made_again_from_its_manifest(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No split is declared: whole groups are dealt, and the plan says by which seed.
    rows = [{**row, "split": None, "group": f"g{i // 2}"} for i, row in enumerate(labelled_rows(60))]
    data = jsonl(tmp_path / "d.jsonl", rows)
    first, second = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    told = ["--name", "p", "--concept", "cracks", "--positive", "cracked", "--negative", "sound"]
    given = ["train", "--model", model_dir, "--data", data]
    swept = ["--layers", "1,1+2", "--seeds", "2", "--seed", "3", "--tokens", "last-2-prompt+answer"]
    assert run(*given, *told, *swept, "-o", first) == 0
    manifest = probes.load(first).manifest
    assert manifest.training is not None
    assert manifest.training.made is not None
    assert manifest.training.made.plan.seed == 3
    assert manifest.training.split == "train (groups dealt 60%/20%/20%, seed 3)"
    assert manifest.token_mask == TokenMask(prompt="last_k", last_k=2)
    assert set(manifest.metrics["layer_profile"]) == {"1", "1+2"}  # type: ignore[arg-type]
    assert first.with_suffix(".profile.svg").read_bytes().startswith(b"<?xml")
    assert run(*given, "--again", first, "-o", second) == 0
    assert "the same tensors" in capsys.readouterr().out
    assert probes.load(second).manifest.tensors_sha256 == manifest.tensors_sha256
    assert run("train", "--model", model_dir, "--data", jsonl(tmp_path / "e.jsonl", rows[2:]), "--again", first,
               "-o", second) == 2  # fmt: skip
    assert "give the same" in capsys.readouterr().err
    other = testing.write_artifact(tmp_path / "fake.safetensors")
    assert run(*given, "--again", other, "-o", second) == 2
    assert "does not say how it was made" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_recipe_trains_with_nothing_but_a_model_and_its_data_can_be_collected_first(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "p.safetensors", tmp_path / "d.jsonl"
    assert run("recipes") == 0
    assert run("recipes", "defection") == 0
    assert "## defection" in capsys.readouterr().out
    common = ["--kind", "difference_of_means", "--layers", "1", "--seeds", "1", "-o", out]
    assert run("train", "--recipe", "defection", "--model", model_dir, *common) == 0
    manifest = probes.load(out).manifest
    assert (manifest.name, manifest.concept) == ("defection", "defection")
    assert run("train", "--again", out, "--model", model_dir, "-o", tmp_path / "q.safetensors") == 0
    assert run("recipes", "defection", "-o", data) == 0
    chats = dataset.read(data)
    assert {chat.split for chat in chats} == {"train", "validation", "test"}
    assert run("train", "--recipe", "defection", *common) == 2
    assert "give --model" in capsys.readouterr().err
    assert run("train", "--model", model_dir, "--data", data, *common) == 2
    assert "--name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seeds", "0"], "--seeds: "),
        (["--regularisation=-1"], "--regularisation: "),
        (["--kind", "tarot"], "difference_of_means"),
        (["--tokens", "some"], "last-5-prompt"),
        (["--recipe", "peace"], "sycophancy"),
        (["--kind", "difference_of_means", "--aggregation", "attention"], "one of: "),
        (["--name", "Not A Name"], "field name"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    out = tmp_path / "p.safetensors"
    told = ["--name", "p", "--concept", "c", "--positive", "a", "--negative", "b", "-o", out]
    data = jsonl(tmp_path / "d.jsonl", labelled_rows(9))
    assert run("train", "--model", model_dir, "--data", data, *told, *more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [data]
