"""What both families share: the noise of a row."""

from audiogen.generators.request import noise_seed


def test_noise_is_of_seed_and_text_on_every_machine() -> None:
    assert noise_seed(7, "a dog barks") == 4037122899401884985
    assert noise_seed(7, None) == 7
    seeds = {
        noise_seed(seed, text) for seed in (0, 1, 2**63 - 1) for text in ("rain", "Rain", "rain ", "é", "1")
    }
    assert len(seeds) == 15 and all(0 <= seed < 2**63 for seed in seeds)
