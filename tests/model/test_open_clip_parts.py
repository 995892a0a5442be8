import torch

from grr_coca.model.open_clip import ClassToken


def test_a_token_with_its_position_is_appended_to_every_sequence() -> None:
    token, x = ClassToken(3), torch.randn(2, 4, 3)
    with torch.no_grad():
        token.embedding.copy_(torch.tensor([1.0, 2.0, 3.0]))
        token.position.fill_(0.5)
    found = token(x)
    assert torch.equal(found[:, :4], x)
    assert torch.equal(found[:, 4], torch.tensor([[1.5, 2.5, 3.5]] * 2))
