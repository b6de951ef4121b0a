from collections.abc import Sequence
from typing import Any, Literal

import pytest
from torch import nn

from ppl_vae.errors import InputError
from ppl_vae.options import check_options, construct, label, options_of, parse


class Base:
    def __init__(self, model: object, encoder: object, width: int = 3, shift: float | None = None) -> None:
        self.made = (model, encoder, width, shift)


class Part(Base):
    def __init__(
        self,
        model: object,
        encoder: object,
        kind: Literal["one", "other"] = "one",
        hidden: Sequence[int] = (8,),
        body: nn.Module | None = None,
        bodies: Sequence[nn.Module] | None = None,
        flag: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, encoder, **options)
        self.kind, self.hidden, self.flag = kind, hidden, flag


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("mean-field", "mean-field", {}),
        ("low-rank:rank=3", "low-rank", {"rank": 3}),
        (" spline : bins = 8 : kind = coupling ", "spline", {"bins": 8, "kind": "coupling"}),
        ("a:lr=1e-3:b=-2:c=0.5", "a", {"lr": 1e-3, "b": -2, "c": 0.5}),
        ("a:x=true:y=False:z=none", "a", {"x": True, "y": False, "z": None}),
        ("a:hidden=64x64:two-words=1", "a", {"hidden": (64, 64), "two_words": 1}),
    ],
)
def test_text_and_back(text: str, name: str, options: dict[str, Any]) -> None:
    assert parse("guide", text) == (name, options)
    assert parse("guide", label(name, options)) == (name, options)


@pytest.mark.parametrize("text", ["a:3", "a:=3", "a:b=", "a:b c=3", "a:b=1:"])
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match=r"guide='a.* must be a name, or a name with options after colons"):
        parse("guide", text)


def test_an_option_said_twice() -> None:
    with pytest.raises(InputError, match="says rank twice"):
        parse("guide", "low-rank:rank=3:rank=4")


def test_what_a_part_takes_is_what_its_constructors_take() -> None:
    # of its own and of the class it hands **options to, without modules, which no text can say
    assert options_of(Part, ("model", "encoder")) == ["kind", "hidden", "flag", "width", "shift"]
    assert options_of(Base, ("model", "encoder")) == ["width", "shift"]
    assert options_of(lambda model, rank=3: None, ("model",)) == ["rank"]


def test_options_become_arguments() -> None:
    options = {"kind": "other", "hidden": 16, "flag": True, "width": 2, "shift": 1}
    checked = check_options("guide", "part", Part, options, ("model", "encoder"))
    assert checked == {**options, "hidden": (16,)}
    part = construct("guide", "part", Part, "model", offered={"encoder": "encoder", "size": 5}, options=checked)
    assert part.made == ("model", "encoder", 2, 1)
    assert (part.kind, part.hidden, part.flag) == ("other", (16,), True)
    assert check_options("guide", "part", Part, {"hidden": [4, 5]})["hidden"] == (4, 5)  # as JSON has it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knid": "one"}, "knid=one does not fit guide='part', which takes kind, hidden, flag, width, shift"),
        ({"body": None}, "body=none does not fit guide='part', which takes"),
        ({"model": "vae"}, "model=vae does not fit"),
        ({"kind": "three"}, "kind=three does not fit guide='part', whose kind is one of one, other"),
        ({"width": 2.0}, "width=2.0 does not fit guide='part', whose width is a whole number"),
        ({"width": True}, "width=true does not fit"),
        ({"width": "wide"}, "width=wide does not fit"),
        ({"shift": "far"}, "shift=far does not fit guide='part', whose shift is a number or none"),
        ({"flag": 1}, "flag=1 does not fit guide='part', whose flag is true or false"),
        ({"hidden": (8, 1.5)}, "hidden=8x1.5 does not fit guide='part', whose hidden is widths, as 64x64"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options("guide", "part", Part, options, ("model", "encoder"))


def test_what_has_no_name_is_made_in_a_program() -> None:
    def guide(model: object, local: object) -> None: ...

    with pytest.raises(InputError, match="guide='guide' needs local, which no name stands for: make it in a program"):
        construct("guide", "guide", guide, "model", offered={"encoder": None})
    with pytest.raises(InputError, match="guide='nothing' takes 0 arguments"):
        construct("guide", "nothing", lambda: None, "model")
