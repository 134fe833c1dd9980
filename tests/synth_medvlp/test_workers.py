"""Several processes on one generation: each on its own GPU, and the reports of a batch shared among them."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from report_requests import NER, Scripted, sampler, wholly

from synth_medvlp import backends, diffusion, mllm, writer
from synth_medvlp.ner_model import ModelNer
from synth_medvlp.screening import AuditConfig
from synth_medvlp.writer import WriterConfig, write_reports

CFG = WriterConfig(batch=16, attempts=2, impression_attempts=2)
N = 40


@pytest.mark.parametrize("fixed", [None, "cpu"])
def test_every_model_goes_to_the_gpu_of_its_process(monkeypatch, fixed):
    import diffusers
    import transformers

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    told = {}

    class Model:
        """Notes where it is put."""

        config = SimpleNamespace(id2label={0: "O"})
        is_fast, chat_template, pad_token_id = True, "{}", 0

        def to(self, place):
            told["to"] = str(place)
            return self

        def eval(self):
            return self

        def set_progress_bar_config(self, **_):
            pass

    def load(*_, **options):
        told.update(options)
        return Model()

    for kind in ("AutoTokenizer", "AutoImageProcessor", "AutoModel", "AutoModelForTokenClassification",
                 "AutoModelForCausalLM"):  # fmt: skip
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", load)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", load)
    expected = fixed or "cuda:3"
    assert mllm.Encoder(AuditConfig(device=fixed)).device == expected == told.pop("to")
    assert ModelNer("x", fixed).device == expected == told.pop("to")
    image = diffusion.ImageConfig(checkpoint="x", device=fixed, scheduler="saved")
    assert diffusion.Generator(image, 8).pipeline and told.pop("to") == expected
    backends.LocalWriter(WriterConfig(model="x"))
    assert told["device_map"] == {"": torch.device("cuda", 3)}
    monkeypatch.setenv("WORLD_SIZE", "1")
    backends.LocalWriter(WriterConfig(model="x"))
    assert told["device_map"] == "auto"


def erratic(request, stage, feedback, seed):
    """What depends on the request and the seed alone, passes in half of the cases."""
    return wholly(request) if seed % 2 else "The lungs are clear."


def together(monkeypatch, folder, world, scripts):
    """`write_reports` of `world` workers in threads: rank -> (records, stats)."""
    place, results = threading.local(), {}
    monkeypatch.setattr(writer, "worker", lambda: (place.rank, world))
    monkeypatch.setattr(writer, "POLL_S", 0.005)

    def run(rank):
        place.rank = rank
        results[rank] = write_reports(sampler(), N, scripts[rank], NER, CFG, folder)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert len(results) == world
    return results


def timeless(stats):
    return {k: v for k, v in stats.items() if "seconds" not in k}


def test_reports_do_not_depend_on_the_number_of_workers(monkeypatch, tmp_path):
    alone = Scripted(erratic)
    whole, stats = write_reports(sampler(), N, alone, NER, CFG, tmp_path / "one")
    scripts = [Scripted(erratic) for _ in range(3)]
    results = together(monkeypatch, tmp_path / "three", 3, scripts)
    for records, told in results.values():
        assert records == whole and timeless(told) == timeless(stats)
    names = ["manifest.jsonl", "seconds.txt", "writer.json"]
    assert sorted(p.name for p in (tmp_path / "three").iterdir()) == names
    assert (tmp_path / "three" / names[0]).read_bytes() == (tmp_path / "one" / names[0]).read_bytes()
    asked = [{call[0] for call in script.calls} for script in scripts]
    assert asked[0] | asked[1] | asked[2] == {record["id"] for record in whole}
    assert not asked[0] & asked[1] and not asked[1] & asked[2] and all(asked)
    assert {c for script in scripts for c in script.companies} == set(alone.companies), "written in the same company"
    assert max(len(ids) for ids in alone.companies) == CFG.batch // writer.SHARES


def test_a_batch_that_was_put_together_meanwhile_is_only_read(monkeypatch, tmp_path):
    write_reports(sampler(), N, Scripted(erratic), NER, CFG, tmp_path)
    lines = (tmp_path / "manifest.jsonl").read_bytes().splitlines(True)
    size = sum(len(line) for line in lines[:16])
    requests = [SimpleNamespace(id=json.loads(line)["id"]) for line in lines[16:32]]
    monkeypatch.setattr(writer, "worker", lambda: (1, 3))
    found = writer._batch(tmp_path / "manifest.jsonl", size, requests, lambda some: pytest.fail("written again"), True)
    assert found == lines[16:32] and not list(tmp_path.glob("share-*"))


@pytest.mark.parametrize("after", [1, 3])
def test_killed_workers_go_on_also_in_another_number(monkeypatch, tmp_path, after):
    whole, _ = write_reports(sampler(), N, Scripted(erratic), NER, CFG, tmp_path / "one")
    manifest = (tmp_path / "one" / "manifest.jsonl").read_bytes().splitlines(True)
    folder = tmp_path / "cut"
    folder.mkdir()
    # As three workers leave it: some batches, a torn one, the share of a worker whose batch was never put together.
    (folder / "manifest.jsonl").write_bytes(b"".join(manifest[: 16 * after]) + manifest[16 * after][:30])
    (folder / "writer.json").write_bytes((tmp_path / "one" / "writer.json").read_bytes())
    batch = manifest[16 * after : 16 * (after + 1)]
    share_of_1 = [line for i, line in enumerate(batch) if i // (16 // writer.SHARES) % 3 == 1]
    first, last = (json.loads(batch[i])["id"] for i in (0, -1))
    (folder / f"share-{first}-{last}-1of3.jsonl").write_bytes(b"".join(share_of_1))
    for world in (3, 2):
        scripts = [Scripted(erratic) for _ in range(world)]
        results = together(monkeypatch, folder, world, scripts)
        assert all(records == whole for records, _ in results.values())
        written = {call[0] for script in scripts for call in script.calls}
        assert not written & {json.loads(line)["id"] for line in [*manifest[: 16 * after], *share_of_1]}
        assert bool(written) == (world == 3), "what three have finished two only read"
