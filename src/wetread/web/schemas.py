"""What the HTTP API says: one model for each answer and each request body. Times are UTC, ages in years."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wetread.clinic import worklist

# Lists, not tuples: what reads the schema does not know `prefixItems` everywhere.
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Box = Annotated[list[float], Field(min_length=4, max_length=4)]


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True, protected_namespaces=())


class ReceivedStudy(_Out):
    """A study that an upload made or added to."""

    study: str
    status: str
    priority: str
    reason: str
    code: str | None
    new: bool = Field(description="False when all its files were here already.")


class ReceivedImage(_Out):
    """What became of one file."""

    file: str
    image: str
    study: str
    new: bool
    quarantined: bool = Field(
        description="Kept apart: other bytes are known under its UID, or its sender may not correct."
    )
    corrected: bool = Field(False, description="A new header around the pixels of a known image, now in force.")


class RefusedFile(_Out):
    """A file that was not accepted."""

    file: str
    detail: str


class ReceiptOut(_Out):
    """What became of an upload."""

    studies: list[ReceivedStudy]
    images: list[ReceivedImage]
    refused: list[RefusedFile]
    skipped: list[str]


class RowOut(_Out):
    """One line of the worklist."""

    study: str
    status: Literal["received", "analysed", "not_analysed", "claimed", "reviewed"]
    priority: Literal["critical", "urgent", "routine"]
    overdue: bool
    reason: str
    finding: str | None
    model: str | None
    code: str | None
    patient_name: str
    patient_id: str
    sex: str | None
    age_years: float | None
    views: str
    image_count: int
    cautions: list[str]
    analysis: str
    reading: str
    received_at: datetime
    overdue_at: datetime
    claimed_by: str | None
    title: str = Field("", description="Study description, or else the body part.")
    handed_by: str | None = Field(None, description="Who handed it over to the reader who has not opened it yet.")


class CountsOut(_Out):
    """Numbers over all unread studies of the site."""

    unread: int
    critical: int
    urgent: int
    routine: int
    overdue: int
    received: int
    not_analysed: int
    oldest: datetime | None


class ModelOut(_Out):
    """A model of the setting `models`; `since` and `by` say when it was turned off, and by whom."""

    name: str
    id: str
    version: str
    state: Literal["serving", "local", "failing", "off", "missing"]
    reason: str
    since: datetime | None = None
    by: str = ""


class OffOut(_Out):
    """What the site's own switch says; `cause` is person."""

    actor: str
    cause: str
    reason: str
    at: datetime


class AiOut(_Out):
    """Whether AI orders the list; `off` is there while all of the site's AI is turned off."""

    on: bool
    banner: str | None
    models: list[ModelOut]
    off: OffOut | None = None


class WorklistOut(_Out):
    """A page of the worklist; `next` is the `after` of the next page."""

    studies: list[RowOut]
    counts: CountsOut
    next: str | None
    ai: AiOut


class FindingOut(_Out):
    """One finding of one model over the study's images."""

    finding: str
    model: str
    probability: float
    threshold: float
    flagged: bool
    call: Literal["likely", "unsure", "unlikely"]
    image: str


class ImageResultOut(_Out):
    """What one model said about one image."""

    model: str
    model_id: str
    suitable: bool
    code: str | None
    reason: str
    cautions: list[str]
    caution_codes: list[str]
    abnormal: float | None
    point: str
    findings: list[dict[str, Any]]
    box: Box | None
    at: datetime


class ImageOut(_Out):
    """One image of a study."""

    image: str
    name: str
    format: str
    view: str | None
    modality: str | None
    bytes: int
    state: Literal["stored", "quarantined", "superseded", "copy", "document", "rejected"] = Field(
        description="Only what is stored is displayed and ranked; `reason` says why the rest is not."
    )
    reason: str | None
    received_at: datetime
    results: list[ImageResultOut]


class ClaimOut(_Out):
    """Who is reading the study."""

    reader: str
    at: datetime
    expires_at: datetime


class ReviewOut(_Out):
    """What a reader decided."""

    review: str
    reader: str
    state: Literal["draft", "signed", "withdrawn"]
    parent: str | None = Field(None, description="The review that this is an addendum to.")
    findings: list[AnswerIn]
    model_verdict: Literal["right", "wrong"] | None
    normal: bool
    note: str
    created_at: datetime
    signed_at: datetime | None
    final_at: datetime | None = Field(None, description="From when on the signature cannot be taken back.")
    revision: int = Field(0, description="Of a draft: counts up whenever it is saved.")
    withdrawn_at: datetime | None = None
    own_call: OwnCall | None = Field(None, description="What a reader who read blind said before the model did.")
    own_call_at: datetime | None = None
    anchored: bool = Field(True, description="False when the own call was recorded before the model's word was shown.")


class OwnCall(_Out):
    """What a reader sees before they are told what the model says."""

    normal: bool
    findings: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default=[], max_length=200)


class OwnCallIn(OwnCall):
    """The same as it is sent."""

    model_config = ConfigDict(extra="forbid")


class StudyOut(RowOut):
    """A study with everything known about it."""

    study_uid: str = Field("", description="DICOM Study Instance UID, as it came or as it was made.")
    birth_date: str | None
    accession: str | None
    description: str | None
    acquired_at: str | None
    abnormal: dict[str, float] = Field(description="Model → calibrated chance of any abnormality.")
    findings: list[FindingOut]
    images: list[ImageOut]
    claim: ClaimOut | None
    review: ReviewOut | None = Field(description="The signed review, the newest if there are several.")
    reviews: list[ReviewOut]
    merged_into: str | None = Field(None, description="The study that took its images, if one did.")
    blind: bool = Field(False, description="Whether what the models said is kept from you until your own call.")


class PatientIn(BaseModel):
    """Whom a study is of."""

    model_config = ConfigDict(extra="forbid")

    patient_id: str | None = Field(None, max_length=256)
    patient_name: str | None = Field(None, max_length=256, description="As `Family, Given`.")
    birth_date: str | None = Field(None, max_length=10, description="YYYY-MM-DD.")
    sex: Literal["M", "F", "O"] | None = None
    reason: str = Field(min_length=1, max_length=500)


class MergeIn(BaseModel):
    """Which study takes over."""

    model_config = ConfigDict(extra="forbid")

    into: str = Field(max_length=64)
    reason: str = Field(min_length=1, max_length=500)


class RejectionIn(BaseModel):
    """Why an image should not count; the numbers are DICOM's codes of rejection notes."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500)
    code: Literal["BY_HAND", "113001", "113037", "113038", "113039"] = "BY_HAND"


class AnswerIn(_Out):
    """A reader's answer to one finding; ``added`` names a finding that no model named."""

    finding: str = Field(min_length=1, max_length=64)
    answer: Literal["agree", "disagree", "unsure", "added"]


class ReviewIn(BaseModel):
    """A reader's decision."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    state: Literal["draft", "signed"] = "signed"
    findings: list[AnswerIn] = Field(default=[], max_length=200)
    model_verdict: Literal["right", "wrong"] | None = Field(None, description="The model over all.")
    normal: bool = Field(False, description="The reader calls the study normal.")
    note: str = Field("", max_length=10_000)
    seen: list[Annotated[str, Field(max_length=64)]] | None = Field(
        None,
        max_length=2000,
        description="Ids of the images that the reader has seen. When others are in the study, signing is answered "
        "with 409 and their ids under `images`. Without it nothing is compared.",
    )
    parent: str | None = Field(
        None,
        max_length=36,
        description="The newest signed review, to which this is an addendum. Without `findings` it leaves all but the "
        "note as it was.",
    )
    revision: int | None = Field(
        None,
        ge=0,
        description="Of the draft that you go on from, 0 for none. When yours is a newer one by now, the answer is 409 "
        "with its `revision`. Without it nothing is compared.",
    )
    writer: str = Field("", max_length=36, description="Names your page: what it saved itself is no newer draft.")


class HandOverIn(BaseModel):
    """To whom a study goes."""

    model_config = ConfigDict(extra="forbid")

    to: str = Field(min_length=1, max_length=64, description="A name of `/readers`.")


class FilterIn(BaseModel):
    """What a filter of the worklist shows: parameters of the page's address."""

    model_config = ConfigDict(extra="forbid")

    query: dict[str, Annotated[str, Field(max_length=64)]] = Field(max_length=20)


class FilterOut(_Out):
    """A filter that is kept."""

    name: str
    query: dict[str, str]


class SwitchIn(BaseModel):
    """The site's AI switch, or that of one model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    on: bool
    model: str = Field("", max_length=64, description="Name of a model; empty is all of the site's AI.")
    reason: str = Field("", max_length=500, description="Shown in the banner and kept in the audit.")


class UrlIn(BaseModel):
    """An address to fetch a radiograph from."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=4096)
    study: str | None = Field(None, max_length=64)
    priority: str | None = Field(None, max_length=16)


class ImageInfo(_Out):
    """The picture behind an image: what the frame has in it."""

    image: str
    rows: int
    columns: int
    bits: Literal[8, 16]
    view: str | None
    spacing_mm: Pair | None


class HeatmapOut(_Out):
    """A finding's map: `values` row by row, relative; `box` is the part of the image that it covers, as fractions."""

    image: str
    model: str
    finding: str
    rows: int
    columns: int
    values: list[float]
    box: Box


ReviewOut.model_rebuild()


def study_out(study: worklist.Study, undo: timedelta) -> StudyOut:
    """Return a study as the API says it; for `undo` a signature can be taken back."""
    reviews = [review_out(review, undo) for review in study.reviews]
    signed = [review for review in reviews if review.state == "signed"]
    row = RowOut.model_validate(study.row).model_dump() | {"cautions": list(study.cautions)}
    return StudyOut(
        **row,
        study_uid=study.study_uid,
        birth_date=study.birth_date,
        accession=study.accession,
        description=study.description,
        acquired_at=study.acquired_at,
        abnormal=study.abnormal,
        findings=[FindingOut.model_validate(finding) for finding in study.findings],
        images=[ImageOut.model_validate(image) for image in study.images],
        claim=ClaimOut.model_validate(study.claim) if study.claim else None,
        review=signed[-1] if signed else None,
        reviews=reviews,
        merged_into=study.merged_into,
        blind=study.blind,
    )


def review_out(review: worklist.Review, undo: timedelta) -> ReviewOut:
    """Return a review as the API says it; for `undo` a signature can be taken back."""
    return ReviewOut(
        review=review.review,
        reader=review.reader,
        state=review.state,
        findings=[AnswerIn.model_validate({"finding": f, "answer": a}) for f, a in review.answers.items()],
        model_verdict=review.verdict,
        normal=review.normal,
        note=review.note,
        created_at=review.created_at,
        signed_at=review.signed_at,
        final_at=review.signed_at + undo if review.signed_at else None,
        parent=review.parent,
        revision=review.revision,
        withdrawn_at=review.withdrawn_at,
        own_call=OwnCall.model_validate(review.own_call) if review.own_call else None,
        own_call_at=review.own_call_at,
        anchored=review.anchored,
    )


class VerdictOut(_Out):
    """The last verdict on a challenger."""

    id: str
    at: datetime
    outcome: str = Field(description="promote, hold or roll_back")
    reasons: list[str]
    studies: int
    reviewed: int


class DeploymentOut(_Out):
    """A package in one stage."""

    id: str
    site: str = Field(description="Empty: every site.")
    slot: str = Field(description="Task and population.")
    model: str = Field(description="SHA-256 of the package.")
    model_name: str
    version: str
    stage: str = Field(description="shadow, canary or champion")
    share: float = Field(description="Of new studies in which its word counts.")
    previous: str | None
    actor: str
    reason: str
    since: datetime
    until: datetime | None = Field(description="Null: in force.")
    ended: str | None = Field(description="promoted, rolled_back, retired or replaced")
    why: str | None
    held: bool
    verdict: VerdictOut | None
    here: bool = Field(description="Whether the process that answers has it loaded.")


class DeploymentsOut(_Out):
    """What concerns a site, the newest first."""

    deployments: list[DeploymentOut]
