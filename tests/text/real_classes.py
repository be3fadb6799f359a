"""Classes of pydantic as programs use them, each with an answer of it and one that is not."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel
from real_schemas import Case


class Color(Enum):
    RED = "red"
    GREEN = "green"


class Priority(IntEnum):
    LOW = 1
    HIGH = 3


class Address(BaseModel):
    street: str
    city: str = Field(description="The town or city")
    zip_code: Annotated[str, Field(pattern=r"^\d{5}(-\d{4})?$")]


class Person(BaseModel):
    """A person with a home."""

    name: str = Field(min_length=1, max_length=50)
    age: int | None = Field(None, ge=0, le=150)
    email: str | None = None
    home: Address
    nicknames: list[str] = []


class Event(BaseModel):
    id: UUID
    day: date
    starts: datetime
    at: time
    takes: timedelta
    link: AnyUrl


class Product(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sku: str = Field(pattern=r"^[A-Z]{3}-\d{4}$")
    price: float = Field(gt=0)
    discount: float = Field(0.0, ge=0, lt=1)
    stock: int = Field(ge=0, multiple_of=5)
    color: Color
    priority: Priority = Priority.LOW


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    breed: str


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Pets(BaseModel):
    pets: list[Cat | Dog]
    by_name: dict[str, Cat]


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Linked(BaseModel):
    value: str
    next: Linked | None = None


class Point(BaseModel):
    at: tuple[float, float]
    label: tuple[str, int]


class Scores(RootModel[dict[str, list[int]]]):
    pass


class Tags(RootModel[list[str]]):
    pass


class Money(BaseModel):
    amount: Decimal
    currency: Literal["EUR", "USD"] = "EUR"


class Anything(BaseModel):
    name: str
    data: Any = None
    extra: dict[str, Any] = {}


class Step(BaseModel):
    explanation: str
    output: str


class MathReasoning(BaseModel):
    steps: list[Step] = Field(min_length=1, max_length=10)
    final_answer: str


class Mixed(BaseModel):
    value: int | float | str | bool | None
    flags: list[Color] | None = None


HOME = Address(street="Elm 1", city="Zürich", zip_code="80331")
MOMENT = datetime(2024, 2, 29, 12, 30, 5, tzinfo=UTC)
ID = UUID("12345678-1234-5678-1234-567812345678")


def _of(model: BaseModel, invalid: str) -> Case:
    """invalid: another answer, as JSON text."""
    kind = type(model)
    return Case(
        f"pydantic {kind.__name__}", kind.model_json_schema(), json.loads(model.model_dump_json()), json.loads(invalid)
    )


PYDANTIC = [
    _of(Person(name="Ann", age=30, email="a@b.de", home=HOME, nicknames=["A", "Annie"]), '{"name": "", "home": {}}'),
    _of(HOME, '{"street": "Elm 1", "city": "X", "zip_code": "8033"}'),
    _of(
        Event(
            id=ID,
            day=MOMENT.date(),
            starts=MOMENT,
            at=MOMENT.timetz(),
            takes=timedelta(hours=1),
            link=AnyUrl("https://a.b/c"),
        ),
        '{"id": "1234", "day": "2024-02-29"}',
    ),
    _of(
        Product(sku="ABC-1234", price=9.99, stock=15, color=Color.RED), '{"sku": "ABC-1234", "price": 9.99, "stock": 7}'
    ),
    _of(Owner(pet=Dog(kind="dog", breed="Pug")), '{"pet": {"kind": "dog", "lives": 3}}'),
    _of(
        Pets(pets=[Cat(kind="cat"), Dog(kind="dog", breed="x")], by_name={"Tom": Cat(kind="cat", lives=7)}),
        '{"pets": [{"kind": "cow"}]}',
    ),
    _of(
        Node(value=1, children=[Node(value=2, children=[Node(value=3)])]),
        '{"value": 1, "children": [{"children": []}]}',
    ),
    _of(Linked(value="a", next=Linked(value="b")), '{"value": "a", "next": "b"}'),
    _of(Point(at=(1.5, -2.0), label=("x", 3)), '{"at": [1.5], "label": ["x", 3]}'),
    _of(Scores({"a": [1, 2], "b": []}), '{"a": [1, "2"]}'),
    _of(Tags(["x", 'y"\\\n']), '["x", 1]'),
    _of(Money(amount=Decimal("12.50")), '{"amount": "12.50", "currency": "GBP"}'),
    _of(Anything(name="a", data=[1, {"b": None}], extra={"c": True}), '{"name": 1}'),
    _of(
        MathReasoning(steps=[Step(explanation="8x = -30", output="x = -3.75")], final_answer="-3.75"),
        '{"steps": [], "final_answer": "1"}',
    ),
    _of(Mixed(value=1.5, flags=[Color.GREEN]), '{"value": [1]}'),
]
