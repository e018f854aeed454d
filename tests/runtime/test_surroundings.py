"""What a run notes of the machine it runs on."""

from plif_lightning.runtime import process as surroundings


def test_surroundings_name_processor_cores_and_versions():
    found = surroundings.surroundings("1 x H100")
    assert found["machine"].endswith(", 1 x H100")
    assert "core" in found["machine"]
    assert {part.split()[0] for part in found["versions"].split(", ")} == {
        "Python",
        "torch",
        "lightning",
        "numba",
        "numpy",
    }
