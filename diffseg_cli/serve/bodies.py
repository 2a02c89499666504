"""What the JSON of requests and answers holds, for the OpenAPI description."""

from typing import Literal

from pydantic import BaseModel, Field

from diffseg_cli.serve.limits import Limits


class ErrorBody(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="What happened, in one sentence.")
    hint: str | None = Field(description="What to do, in one sentence.")


class Runs(BaseModel):
    """Run lengths as in COCO, compressed."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class InstanceBody(BaseModel):
    """One object of a mask."""

    id: int = Field(description="From 1; its value in the instance map.")
    box_xywh: list[int]
    pixels: int
    score: float
    rle: Runs | None = None
    polygons: list[list[float]] | None = None


class FoundBody(BaseModel):
    """What was found in a query."""

    name: str
    size_hw: list[int] = Field(description="Height and width, as a viewer shows the image.")
    mask_area: float = Field(description="Share of the image.")
    pixels: int
    box_xywh: list[int] | None = Field(description="Left, top, width, height; null for an empty mask.")
    regions: int = Field(description="Connected regions of the mask, without specks.")
    presence: float | None = Field(description="How sure it is that the object is there, in [0, 1].")
    score: float = Field(description="Mean probability inside the mask, times presence.")
    count: int | None = Field(default=None, description="Of instances, where they are asked for.")
    instances: list[InstanceBody] | None = None
    threshold: float
    min_presence: float
    min_area: str
    zoom: str
    looks: int = Field(description="How often the model looked: at the whole image, and closer.")
    notes: list[str] = Field(description="How masks were understood, and doubts about the answer.")
    seconds: dict[str, float]
    rle: Runs | None = None
    polygons: list[list[float]] | None = Field(default=None, description="x, y, x, y, ... of each part.")
    probability_png: str | None = Field(
        default=None,
        description="Base64 of a grey PNG: probability in half percents, rounded up (0 to 200). Above a "
        "threshold of k % are the values over 2 k.",
    )
    score_map_png: str | None = Field(
        default=None, description="Base64 of a grey PNG of the score map (0 to 255), 1024 pixels at most."
    )


class AdaptationBody(BaseModel):
    """How far adapting the model to a concept is, or what came of it."""

    stage: Literal["adapting", "done", "cancelled", "failed"]
    done: int | None = Field(default=None, description="Steps.")
    total: int | None = Field(default=None, description="Steps in all.")
    seconds_left: float | None = None
    error: str | None = None
    reach: float | None = Field(default=None, description="How far the modules moved; 0: they stayed.")
    before: float | None = Field(
        default=None,
        description="IoU at which each support is found with the others, before; null where one support "
        "says too little to adapt to.",
    )
    after: float | None = Field(default=None, description="The same, after.")


class ConceptBody(BaseModel):
    """A concept that is kept."""

    id: str = Field(description="Its name.")
    supports: int
    fixed: bool = Field(description="Given at the start; cannot be deleted.")
    preview: str = Field(description="The first support on a dark background, as a data URL.")
    notes: list[str]
    adaptation: AdaptationBody | None = Field(description="Null where the model was not adapted to it.")


class ConceptsBody(BaseModel):
    """All concepts that are kept."""

    concepts: list[ConceptBody]


class ModelBody(BaseModel):
    """What answers here."""

    version: str
    description: str
    has_presence: bool
    can_adapt: bool
    limits: Limits


class HealthBody(BaseModel):
    """Sent as long as the server answers."""

    status: Literal["ok"]
    version: str
