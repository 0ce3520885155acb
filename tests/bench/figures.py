"""One line per figure: name value unit reference ratio goal; what limits it stands below."""

FIELDS = ("name", "value", "unit", "reference", "ratio", "goal")


def figure(name, value, unit, reference, goal, digits=1, notes=()):
    ratio = value / reference if reference else 0
    return {"name": name, "value": f"{value:.{digits}f}", "unit": unit,
            "reference": f"{reference:.{digits}f}", "ratio": f"{ratio:.2f}", "goal": goal,
            "notes": list(notes)}


def show(found):
    print(*(found[field] for field in FIELDS), flush=True)
    for note in found.get("notes", ()):
        print("   ", note, flush=True)
