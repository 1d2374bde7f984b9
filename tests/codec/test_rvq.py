"""The residual quantiser: nearest codewords, k-means, learning, prefixes as bandwidths."""

import pytest
import torch

from audiogen.codec import rvq
from audiogen.codec.rvq import Codebook, ResidualQuantizer, kmeans, nearest, search


def test_nearest_is_the_brute_force_argmin():
    torch.manual_seed(0)
    x, book = torch.randn(50, 6), torch.randn(17, 6)
    assert torch.equal(nearest(x, book), torch.cdist(x, book).argmin(1))


def test_kmeans_finds_separated_clusters():
    torch.manual_seed(0)
    centres = 20.0 * torch.randn(5, 3)
    x = (centres[:, None] + 0.1 * torch.randn(5, 40, 3)).reshape(-1, 3)
    means, counts = kmeans(x, 12, 50)
    assert counts.sum() == 200
    assert torch.cdist(centres, means).min(1).values.max() < 0.5


def test_kmeans_never_builds_a_point_by_code_by_width_tensor():
    n, num_codes, dim = 20000, 512, 128
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Largest():
        kmeans(torch.randn(n, dim), num_codes, 1)
    assert largest <= n * num_codes


def test_ema_update_is_the_moving_average_of_the_assigned_vectors():
    torch.manual_seed(0)
    book = Codebook(2, 3, decay=0.9, dead_below=0.0, kmeans_iterations=1)
    book.usage.fill_(4.0)
    old = book.codewords.clone()
    x = torch.randn(6, 3)
    codes = torch.tensor([0, 0, 1, 0, 0, 0])
    book.update(x, codes)
    want = (0.9 * 4 * old[0] + 0.1 * x[codes == 0].sum(0)) / (0.9 * 4 + 0.1 * 5)
    torch.testing.assert_close(book.codewords[0], want)
    assert torch.isclose(book.usage[1], torch.tensor(0.9 * 4 + 0.1))
    book.usage.zero_()
    kept = book.codewords[1].clone()
    book.update(x, torch.zeros(6, dtype=torch.int64))  # the second holds nothing, and stays
    assert torch.equal(book.codewords[1], kept)
    torch.testing.assert_close(book.codewords[0], x.mean(0))


def test_a_dead_codeword_moves_onto_the_data():
    torch.manual_seed(0)
    book = Codebook(8, 2, decay=0.5, dead_below=0.5, kmeans_iterations=5)
    book.initialise(torch.randn(64, 2))
    book.codewords[3] = 1e4
    for _ in range(8):
        x = torch.randn(64, 2)
        book.update(x, nearest(x, book.codewords))
    assert book.codewords.abs().max() < 10
    assert len(torch.unique(nearest(torch.randn(512, 2), book.codewords))) == 8


def test_training_uses_the_whole_codebook_and_more_codebooks_mean_less_error():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(3, 32, 4, decay=0.9, dead_below=0.5, kmeans_iterations=10).train()
    for _ in range(30):
        quantizer(torch.randn(4, 4, 50))
    quantizer.eval()
    x = torch.randn(4, 4, 50)
    out = quantizer(x)
    for k in range(3):
        assert len(torch.unique(out.codes[:, k])) >= 28
    errors = [float((quantizer.decode(out.codes[:, : k + 1]) - x).square().mean()) for k in range(3)]
    assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2]


def test_every_prefix_of_the_codebooks_is_a_bandwidth():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 16, 6).eval()
    x = torch.randn(2, 6, 9)
    full = quantizer.encode(x, 4)
    for k in range(1, 5):
        assert torch.equal(quantizer.encode(x, k), full[:, :k])
        torch.testing.assert_close(quantizer(x, k).latents, quantizer.decode(full[:, :k]))
    assert torch.equal(quantizer(x).codes, full)


def test_each_item_may_use_its_own_number_of_codebooks():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(3, 16, 4).eval()
    x = torch.randn(3, 4, 5)
    mixed = quantizer(x, torch.tensor([1, 3, 2])).latents
    for row, count in enumerate((1, 3, 2)):
        torch.testing.assert_close(mixed[row : row + 1], quantizer(x[row : row + 1], count).latents)


def test_codebooks_learn_only_from_the_items_that_use_them():
    def last_codewords(other: float):
        torch.manual_seed(0)
        quantizer = ResidualQuantizer(2, 8, 4, kmeans_iterations=3).train()
        x = torch.randn(2, 4, 30)
        x[1] = other
        quantizer(x, torch.tensor([2, 1]))
        torch.manual_seed(1)
        return quantizer.codebooks[1].usage.sum()

    assert last_codewords(0.0) == last_codewords(5.0)  # item 1 adds nothing to codebook 1's counts


def test_gradients_pass_straight_through_and_commitment_pulls_the_encoder():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(2, 8, 4).train()
    quantizer.num_frozen = 2
    x = torch.randn(1, 4, 6, requires_grad=True)
    out = quantizer(x)
    weight = torch.randn_like(out.latents)
    (grad,) = torch.autograd.grad((out.latents * weight).sum(), x, retain_graph=True)
    torch.testing.assert_close(grad, weight)
    (grad,) = torch.autograd.grad(out.commitment_loss, x)
    assert grad.abs().sum() > 0
    moved = quantizer(x.detach() - 0.5 * grad)
    assert moved.commitment_loss < out.commitment_loss


def test_a_search_of_all_sums_finds_the_best_and_a_narrower_one_is_between_it_and_the_nearest_codewords():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(3, 5, 4)
    latents = 0.5 * torch.randn(2, 4, 30)

    def error(codes: torch.Tensor) -> float:
        return float((quantizer.decode(codes) - latents).square().sum())

    books = [book.codewords for book in quantizer.books]
    sums = (books[0][:, None, None] + books[1][:, None] + books[2]).flatten(0, 2)  # [V * V * V, D]
    frames = latents.transpose(1, 2).flatten(0, 1)
    best = float(torch.cdist(frames, sums).min(1).values.square().sum())
    errors = [error(quantizer.encode(latents, 3, beam)) for beam in (1, 2, 4, 25)]
    assert errors[3] == pytest.approx(best, rel=1e-5)
    assert errors[0] > 1.05 * errors[1] and errors[1] > errors[2] > errors[3]
    assert torch.equal(search(frames, books, 1), quantizer.encode(latents, 3).transpose(1, 2).flatten(0, 1))
    assert torch.equal(search(frames, books[:1], 8)[:, 0], nearest(frames, books[0]))


def test_a_search_is_of_each_frame_by_itself(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 16, 6)
    latents = torch.randn(3, 6, 11)
    whole = quantizer.encode(latents, 4, 4)
    assert whole.shape == (3, 4, 11)
    monkeypatch.setattr(rvq, "SEARCHED_AT_ONCE", 5)
    assert torch.equal(quantizer.encode(latents, 4, 4), whole)
    assert torch.equal(quantizer.encode(latents[1:2, :, 3:7], 4, 4), whole[1:2, :, 3:7])
    assert quantizer.encode(latents[..., :0], 4, 4).shape == (3, 4, 0)
