"""Time zones and cron expressions against Python's zoneinfo, which reads the same tzdata: every
zone's offsets, and the fire times around clock changes by counting minutes."""
import random
import subprocess
import zoneinfo
from datetime import datetime, timezone

import pytest

from tests.harness.process import BIN

DRIVER = BIN.parent / "helpers" / "cron_driver"
FIRST = int(datetime(1973, 1, 1, tzinfo=timezone.utc).timestamp())
LAST = int(datetime(2065, 1, 1, tzinfo=timezone.utc).timestamp())
MINUTE, HOUR, DAY = 60, 3600, 86400
# Half an hour of daylight time, no daylight but other changes, negative daylight time, changes at
# midnight, days that were left out, four changes a year, offsets with odd minutes.
ODD = ["Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kwajalein", "Europe/Dublin", "Africa/Casablanca",
       "America/St_Johns", "Pacific/Chatham", "Asia/Kathmandu", "Antarctica/Troll", "Asia/Gaza",
       "Africa/Cairo", "America/Santiago", "America/Asuncion", "America/Nuuk", "Asia/Tehran",
       "Europe/Moscow", "America/Caracas", "Asia/Pyongyang", "Asia/Beirut", "America/Havana",
       "Asia/Amman", "Africa/Juba", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "UTC"]
PATTERNS = ["30 2 * * *", "0 2 * * *", "*/15 1-3 * * *", "0 */2 * * *", "0 * * * *", "*/20 * * * *",
            "59 23 * * *", "0 0 * * *", "45 0,1,2,3 * * sun", "10 0-23 * * *", "0 3 1,15,30 * mon",
            "5 0 */2 * *", "17 1 29-31 3,10 *"]


def ask(lines):
    done = subprocess.run([str(DRIVER)], input="\n".join(lines) + "\n", capture_output=True,
                          text=True, timeout=120, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == len(lines)
    return answers


def offset(zone, at):
    return int(datetime.fromtimestamp(at, zone).utcoffset().total_seconds())


def names():
    return sorted(n for n in zoneinfo.available_timezones() if n not in ("localtime", "posixrules"))


def changes(zone, first=FIRST, last=LAST, step=7 * DAY):
    """Instants at which the offset changes, found by halving; two within a week hide each other."""
    found = []
    for low in range(first, last, step):
        high = low + step
        if offset(zone, low) == offset(zone, high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(zone, middle) == offset(zone, low) else (low, middle)
        found.append(high)
    return found


def test_every_zone_has_the_offsets_that_zoneinfo_knows():
    rand = random.Random(5)
    everyone = names()
    assert len(everyone) > 400
    for name in everyone:
        zone = zoneinfo.ZoneInfo(name)
        ats = [rand.randrange(FIRST, LAST) for _ in range(150)]
        for at, answer in zip(ats, ask([f"span {name} {at}" for at in ats])):
            start, end, got = map(int, answer.split())
            assert start <= at < end and got == offset(zone, at), (name, at)


@pytest.mark.parametrize("name", ODD)
def test_changes_are_found_to_the_second(name):
    zone = zoneinfo.ZoneInfo(name)
    ats = changes(zone)
    lines = [f"span {name} {at - d}" for at in ats for d in (1, 0)] or [f"span {name} 0"]
    answers = [list(map(int, a.split())) for a in ask(lines)]
    for i, at in enumerate(ats):
        before, behind = answers[2 * i], answers[2 * i + 1]
        assert before[1] == behind[0] == at
        assert before[2] == offset(zone, at - 1) and behind[2] == offset(zone, at)


class Field:
    NAMES = {"sun": "0", "mon": "1"}

    def __init__(self, text, low, high):
        self.star = text[0] == "*"
        self.values = set()
        for item in text.split(","):
            span, _, step = item.partition("/")
            first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
            first = int(self.NAMES.get(first, first))
            self.values |= set(range(first, int(last or first) + 1, int(step or 1)))


class Pattern:
    def __init__(self, text):
        bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
        self.fields = [Field(t, *b) for t, b in zip(text.split(), bounds)]
        self.every_hour = len(self.fields[1].values) == 24

    def matches(self, local):
        minute, hour, day, month, weekday = self.fields
        when = datetime.fromtimestamp(local, timezone.utc)
        by_day, by_weekday = when.day in day.values, when.isoweekday() % 7 in weekday.values
        days = by_day and by_weekday if day.star or weekday.star else by_day or by_weekday
        return (days and when.minute in minute.values and when.hour in hour.values and
                when.month in month.values)

    def fires(self, clock, first):
        """Of the window's minutes [(instant, local time)], those at which this fires."""
        out, shown, before = [], set(), None
        for at, local in clock:
            fire = self.matches(local) and (self.every_hour or local not in shown)
            if before is not None and not self.every_hour:
                fire = fire or any(self.matches(lost) for lost in range(before + 60, local, 60)
                                   if lost not in shown)
            shown.add(local)
            before = local
            if fire and at >= first:
                out.append(at)
        return out


@pytest.mark.parametrize("name", ODD)
def test_fire_times_around_clock_changes_are_those_counted_by_minutes(name):
    zone = zoneinfo.ZoneInfo(name)
    ats = changes(zone, int(datetime(1990, 1, 1, tzinfo=timezone.utc).timestamp()))
    rand = random.Random(name)
    chosen = rand.sample(ats, min(4, len(ats))) or [1774746000]
    lines, wanted = [], []
    for at in chosen:
        start = at // MINUTE * MINUTE - 3 * DAY
        clock = [(t, t + offset(zone, t)) for t in range(start, start + 6 * DAY, MINUTE)]
        for text in PATTERNS:
            fires = Pattern(text).fires(clock, start + DAY + HOUR)
            if not fires:
                continue
            lines.append(f"next {name} {start + DAY + HOUR - 1} {len(fires)} {text}")
            wanted.append((text, at, fires))
    for (text, at, fires), answer in zip(wanted, ask(lines)):
        assert list(map(int, answer.split())) == fires, (text, at)


def test_next_is_strictly_after_and_the_same_from_wherever_it_is_asked():
    rand = random.Random(11)
    for name in ("Europe/Berlin", "Australia/Lord_Howe", "America/Santiago"):
        for text in PATTERNS:
            start = rand.randrange(FIRST, LAST)
            row = list(map(int, ask([f"next {name} {start} 30 {text}"])[0].split()))
            assert row == sorted(set(row)) and row[0] > start
            between = [(i, rand.randrange(row[i], row[i + 1])) for i in range(29)]
            for (i, at), answer in zip(between, ask([f"next {name} {at} 1 {text}" for _, at in between])):
                assert int(answer) == row[i + 1], (name, text, at)
