"""What a radiologist would have dictated: a study's findings in varied words, and the labels that the words carry.

Sides, sizes and locations are those that were drawn, so that a masked word can be reconstructed from the image.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from mrm_stream.sources.phantom.draws import Draws, Level
from mrm_stream.sources.phantom.subject import RIGHT, Finding, Kind, Study

_LINE = 79
_LABEL_OF = {
    Kind.EFFUSION: "Pleural Effusion",
    Kind.PNEUMOTHORAX: "Pneumothorax",
    Kind.CARDIOMEGALY: "Cardiomegaly",
    Kind.NODULE: "Lung Lesion",
    Kind.CONSOLIDATION: "Consolidation",
}
_COMPLAINTS = {
    Kind.EFFUSION: ("dyspnea", "shortness of breath", "decreased breath sounds"),
    Kind.PNEUMOTHORAX: ("acute chest pain", "sudden shortness of breath", "pleuritic pain"),
    Kind.CARDIOMEGALY: ("leg swelling", "shortness of breath", "dyspnea on exertion"),
    Kind.NODULE: ("weight loss", "hemoptysis", "smoking history"),
    Kind.CONSOLIDATION: ("fever and cough", "cough and chills", "productive cough"),
}
_CHECKS = ("preoperative evaluation", "chest pain", "cough", "fall", "positive PPD", "altered mental status")


@dataclass(frozen=True, slots=True)
class Report:
    """The text of a report and what it says."""

    text: str
    labels: dict[str, int]
    """1 stated, 0 denied, -1 uncertain; findings of which nothing is said have no entry."""


def write_report(seed: int, study: Study, *, earlier: int) -> Report:
    """Return a study's report.

    Args:
        seed: Of the data set.
        study: What the image shows.
        earlier: Earlier studies of the same subject.
    """
    draws = Draws(seed, Level.REPORT, study.index)
    labels: dict[str, int] = {}
    sections = [
        ("EXAMINATION", _examination(draws, study)),
        ("INDICATION", _indication(draws, study)),
        ("COMPARISON", "___." if earlier else draws.choice(("None.", "None available.", "No prior studies."))),
        ("FINDINGS", " ".join(_findings(draws, study, labels))),
        ("IMPRESSION", _impression(draws, study, labels)),
    ]
    if not any(value == 1 for value in labels.values()):
        labels["No Finding"] = 1
    lines = [" " * 33 + "FINAL REPORT"]
    for header, body in sections:
        lines += _wrap(f"{header}:  {body}" if len(body) < 60 else f"{header}:\n{body}")
        lines.append(" ")
    return Report("\n".join(lines) + "\n", labels)


def _wrap(section: str) -> list[str]:
    lines: list[str] = []
    for paragraph in section.split("\n"):
        lines += textwrap.wrap(paragraph, _LINE, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
    return lines


def _examination(draws: Draws, study: Study) -> str:
    if study.portable:
        return draws.choice(("CHEST (PORTABLE AP)", "Portable AP chest radiograph", "CHEST RADIOGRAPH, PORTABLE AP"))
    return draws.choice(("CHEST (PA)", "Chest radiograph, PA view", "CHEST, FRONTAL PA VIEW"))


def _indication(draws: Draws, study: Study) -> str:
    who = draws.choice(("___F", "___ year old woman") if study.anatomy.female else ("___M", "___ year old man"))
    kinds = [finding.kind for finding in study.findings]
    complaint = draws.choice(_COMPLAINTS[draws.choice(kinds)] if kinds else _CHECKS)
    return f"{who} with {complaint}" + draws.choice(("", ", evaluate for acute process", ". Question pneumonia")) + "."


def _findings(draws: Draws, study: Study, labels: dict[str, int]) -> list[str]:
    """Return the sentences of FINDINGS and note in `labels` what they say."""
    sentences = [_volumes(draws, study)]
    stated: list[str] = []
    for kind in (Kind.CONSOLIDATION, Kind.NODULE, Kind.EFFUSION, Kind.PNEUMOTHORAX):
        found = study.having(kind)
        if found:
            labels[_LABEL_OF[kind]] = 1
            stated.append(_sentence(draws, found))
    if study.having(Kind.CONSOLIDATION):
        labels["Lung Opacity"] = 1
    denied = _denials(draws, study, labels)
    heart = _heart(draws, study, labels)
    body = [*stated, denied] if draws.chance(0.6) else [denied, *stated]
    sentences += [heart, *body] if draws.chance(0.5) else [*body, heart]
    if draws.chance(0.45):
        labels["Edema"] = 0
        sentences.append(draws.choice(("There is no pulmonary edema.", "No evidence of pulmonary edema.", "No edema.")))
    if draws.chance(0.4):
        labels["Fracture"] = 0
        sentences.append(draws.choice(("No acute fractures are identified.", "No displaced rib fracture is seen.")))
    return [sentence for sentence in sentences if sentence]


def _volumes(draws: Draws, study: Study) -> str:
    view = "Portable AP view of the chest" if study.portable else "PA view of the chest"
    opening = draws.choice((f"{view} was provided.", f"{view} was obtained.", ""))
    if study.low_volumes:
        words = draws.choice(("Lung volumes are low.", "There are low lung volumes.", "Inspiratory effort is poor."))
    else:
        words = draws.choice(
            ("The lungs are well expanded.", "Lung volumes are normal.", "The lungs are well inflated.")
        )
    return f"{opening} {words}".strip()


def _graded(size: float, words: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], draws: Draws) -> str:
    return draws.choice(words[0 if size < 0.33 else 1 if size < 0.67 else 2])


_EFFUSION = (("small", "small", "trace to small"), ("moderate", "moderate-sized"), ("large", "large"))
_PNEUMOTHORAX = (("small", "tiny"), ("moderate", "moderate-sized"), ("large", "sizable"))
_CARDIOMEGALY = (("mild", "mild"), ("moderate", "moderate"), ("severe", "marked"))
_CONSOLIDATION = (("focal", "patchy"), ("confluent", "dense"), ("extensive", "widespread"))


def side_word(finding: Finding) -> str:
    """Return the patient's side."""
    return "right" if finding.side == RIGHT else "left"


def _location(draws: Draws, finding: Finding) -> str:
    """Return where in a lung a nodule or consolidation lies: thirds of the height of the lung."""
    side = side_word(finding)
    if finding.height < 0.36:
        return f"{side} " + draws.choice(("upper lobe", "upper lung", "upper lung zone"))
    if finding.height < 0.6:
        return f"{side} " + draws.choice(("mid lung", "mid lung zone", "perihilar region"))
    return f"{side} " + draws.choice(("lower lobe", "lung base", "lower lung"))


def _sentence(draws: Draws, found: tuple[Finding, ...]) -> str:
    first = found[0]
    if first.kind is Kind.CONSOLIDATION:
        what = f"{_graded(first.size, _CONSOLIDATION, draws)} {draws.choice(('consolidation', 'airspace opacity'))}"
        return draws.choice(
            (
                f"There is {what} in the {_location(draws, first)}.",
                f"{_capital(what)} is seen in the {_location(draws, first)}.",
                f"{_capital(what)} involves the {_location(draws, first)}.",
            )
        )
    if first.kind is Kind.NODULE:
        what = draws.choice(("nodule", "rounded nodular opacity", "pulmonary nodule"))
        size = f"{first.diameter_mm} mm"
        article = "an" if first.diameter_mm == 18 else "a"
        return draws.choice(
            (
                f"There is {article} {size} {what} in the {_location(draws, first)}.",
                f"A {what} in the {_location(draws, first)} measures {size}.",
                f"{_capital(article)} {size} {what} projects over the {_location(draws, first)}.",
            )
        )
    if first.kind is Kind.EFFUSION:
        return _effusion(draws, found)
    what = f"{_graded(first.size, _PNEUMOTHORAX, draws)} {side_word(first)}"
    return draws.choice(
        (
            f"There is a {what} pneumothorax.",
            f"A {what} apical pneumothorax is present.",
            f"A {what} pneumothorax is seen with a visible pleural line.",
        )
    )


def _effusion(draws: Draws, found: tuple[Finding, ...]) -> str:
    sizes = [_graded(finding.size, _EFFUSION, draws) for finding in found]
    if len(found) == 1:
        size, side = sizes[0], side_word(found[0])
        what = f"{size} {side} pleural effusion"
        seen = [
            f"There is a {what}.",
            f"A {what} is present.",
            f"{_capital(size)} effusion is noted on the {side}.",
        ]
        if found[0].size < 0.33:
            seen.append(f"Blunting of the {side} costophrenic angle is due to a {what}.")
        return draws.choice(seen)
    if sizes[0] == sizes[1]:
        return draws.choice(
            (f"There are {sizes[0]} bilateral pleural effusions.", f"Bilateral pleural effusions are {sizes[0]}.")
        )
    first, second = found if draws.chance(0.5) else found[::-1]
    words = {finding.side: f"{size} {side_word(finding)}" for finding, size in zip(found, sizes, strict=True)}
    return f"There is a {words[first.side]} and a {words[second.side]} pleural effusion."


def _denials(draws: Draws, study: Study, labels: dict[str, int]) -> str:
    """Deny what is absent of the three that are always looked for, now and then leaving one out."""
    words = {
        Kind.CONSOLIDATION: "focal consolidation",
        Kind.EFFUSION: "pleural effusion",
        Kind.PNEUMOTHORAX: "pneumothorax",
    }
    absent = [kind for kind in words if not study.having(kind) and draws.chance(0.92)]
    if not absent:
        return ""
    for kind in absent:
        labels[_LABEL_OF[kind]] = 0
    items = [words[kind] for kind in absent]
    listed = items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" or {items[-1]}"
    return draws.choice(
        (f"There is no {listed}.", f"No {listed} is seen.", f"No {listed}.", f"No evidence of {listed}.")
    )


def _heart(draws: Draws, study: Study, labels: dict[str, int]) -> str:
    enlarged = study.having(Kind.CARDIOMEGALY)
    if not enlarged:
        labels["Cardiomegaly"] = 0
        if draws.chance(0.5):
            labels["Enlarged Cardiomediastinum"] = 0
            return draws.choice(
                ("The cardiomediastinal silhouette is normal.", "Cardiomediastinal contours are normal.")
            )
        return draws.choice(("Heart size is normal.", "The heart is normal in size.", "The heart is not enlarged."))
    labels["Cardiomegaly"] = 1
    degree = _graded(enlarged[0].size, _CARDIOMEGALY, draws)
    return draws.choice(
        (
            f"There is {degree} cardiomegaly.",
            f"The heart is {degree}ly enlarged.",
            f"{_capital(degree)} enlargement of the cardiac silhouette is present.",
        )
    )


def _impression(draws: Draws, study: Study, labels: dict[str, int]) -> str:
    points: list[str] = []
    for kind in (Kind.PNEUMOTHORAX, Kind.CONSOLIDATION, Kind.EFFUSION, Kind.NODULE, Kind.CARDIOMEGALY):
        found = study.having(kind)
        if not found:
            continue
        first = found[0]
        if kind is Kind.PNEUMOTHORAX:
            points.append(f"{_capital(_graded(first.size, _PNEUMOTHORAX, draws))} {side_word(first)} pneumothorax.")
        elif kind is Kind.CONSOLIDATION:
            points.append(_pneumonia(draws, first, labels))
        elif kind is Kind.EFFUSION:
            points.append(_effusion_impression(draws, found))
        elif kind is Kind.NODULE:
            advice = draws.choice(("", " Recommend chest CT.", " Nonurgent chest CT is recommended."))
            points.append(f"{first.diameter_mm} mm {side_word(first)} lung nodule.{advice}")
        else:
            points.append(f"{_capital(_graded(first.size, _CARDIOMEGALY, draws))} cardiomegaly.")
    if not points:
        return draws.choice(
            (
                "No acute cardiopulmonary process.",
                "No acute intrathoracic process.",
                "No acute cardiopulmonary abnormality.",
                "Normal chest radiograph.",
                "No evidence of acute disease.",
            )
        )
    if len(points) == 1 or draws.chance(0.4):
        return " ".join(points)
    return "\n".join(f"{number}. {point}" for number, point in enumerate(points, 1))


def _pneumonia(draws: Draws, finding: Finding, labels: dict[str, int]) -> str:
    location = _location(draws, finding)
    if draws.chance(0.5):
        labels["Pneumonia"] = 1
        return draws.choice(
            (f"{_capital(location)} pneumonia.", f"Findings consistent with pneumonia in the {location}.")
        )
    labels["Pneumonia"] = -1
    return draws.choice(
        (
            f"{_capital(location)} consolidation, possibly pneumonia.",
            f"{_capital(location)} opacity may represent pneumonia.",
        )
    )


def _effusion_impression(draws: Draws, found: tuple[Finding, ...]) -> str:
    if len(found) == 2:
        return draws.choice(("Bilateral pleural effusions.", "Pleural effusions on both sides."))
    return f"{_capital(_graded(found[0].size, _EFFUSION, draws))} {side_word(found[0])} pleural effusion."


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
