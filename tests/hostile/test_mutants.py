"""Seeded mutants of ticket files: none crashes, hangs, escapes or reads wrong; weakened builds show that it counts."""

import pytest
from hostile import decoders, weak
from makers.campaign import run_script

CLASSES = sorted(weak.CLASS_FAILS_IN)


def test_ten_thousand_mutants() -> None:
    """Of 10,000, half signed anew: each changed one is refused or opens under another identity, sound ones open."""
    code, total = run_script("hostile/mutants.py", "--count", "10000", "--processes", "2")
    assert total["findings"] == []
    assert code == 0
    assert (total["mutants"], total["signed"]) == (10_000, 5_000)
    assert set(total["classes"]) == {*CLASSES, "untouched"}
    assert min(total["classes"].values()) > 300
    outcomes = total["outcomes"]
    assert outcomes["opened under another identity"] > 50
    assert outcomes["accepted unchanged"] > 300
    assert sum(count for name, count in outcomes.items() if name.startswith("refused")) > 8_000
    assert total["grown"] < 256 * 2**20


@pytest.mark.parametrize("build", sorted(weak.BUILDS))
def test_each_class_is_noticed_in_a_weakened_build(build: str) -> None:
    """With one defence switched off, the same mutants lead to findings of every class that it keeps out."""
    classes = {name for name in CLASSES if weak.CLASS_FAILS_IN[name] == build}
    count = 60 * len(classes) if build == "no_digests" else 30 * len(classes)
    code, total = run_script("hostile/mutants.py", "--count", str(count), "--processes", "1", "--weaken", build)
    assert code == 1
    assert {finding.split(":")[0].split()[1] for finding in total["findings"]} == classes


def test_mutants_of_images() -> None:
    """800 of every format and way against the real decoders: decoded or BadImageError, in time and memory."""
    total = decoders.part(0, 800, weaken=False)
    assert total["findings"] == []
    assert total["mutants"] == 800
    assert len(total["ways"]) == 21
    assert min(total["outcomes"].values()) > 100


def test_mutants_of_images_that_libpng_reads_itself() -> None:
    """Without the check of PNGs the same mutants end the decoding process: the test above can fail."""
    total = decoders.part(0, 40, weaken=True)
    assert {finding.split()[0] for finding in total["findings"]} == {"png"}
    assert all("the process ended with -11" in finding for finding in total["findings"])


def test_flipped_bits() -> None:
    """Every 23rd bit of every file, and so all eight positions; `make torture` flips every bit of all three forms."""
    code, total = run_script("hostile/bits.py", "--stride", "23")
    assert (code, total["findings"]) == (0, [])
    assert total["flips"] > 1_500


def test_mutants_of_checkpoints() -> None:
    """400 changed safetensors and .pth files: refused, or loaded under the digest of what they hold."""
    code, total = run_script("hostile/checkpoints.py", "--count", "400", warm=True)
    assert (code, total["findings"]) == (0, [])
    assert total["outcomes"]["loaded under another digest"] > 50
    code, total = run_script("hostile/checkpoints.py", "--count", "60", "--weaken", warm=True)
    assert code == 1
    assert "the digest does not tell what was loaded" in total["findings"][0]


def test_mutants_of_run_folders() -> None:
    """Of 24 spoilt folders of a run each is refused or read as the sound one, resumed or by what else reads it.

    A quarter hold a state.json that was changed and digested anew. Without digests one is found.
    """
    code, total = run_script("hostile/run_folders.py", "--count", "24", warm=True)
    assert (code, total["findings"]) == (0, [])
    assert total["outcomes"]["refused E_DAMAGE"] > 8
    code, total = run_script("hostile/run_folders.py", "--first", "14", "--count", "1", "--weaken", warm=True)
    assert code == 1
    assert "model.safetensors, bit 8091: another run" in total["findings"][0]
