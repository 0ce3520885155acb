"""The configuration file: sample, reference page and every binary agree."""
import os
import pathlib
import re
import subprocess

import pytest

from tests.harness.process import BIN, ROOT
from tests.harness.suite import SERVICES

SAMPLE = ROOT / "deploy" / "config.example.yaml"
SECRETS = {"HYPERSDK_DB_PASSWORD": "a", "HYPERSDK_REDIS_PASSWORD": "b",
           "HYPERSDK_MASTER_KEY": "0" * 64, "HYPERSDK_HOOK_SECRET": "c", "VSPHERE_PASSWORD": "d",
           "ARCHIVE_KEY_ID": "e", "ARCHIVE_SECRET": "f"}


def run(service, *args, env=None):
    return subprocess.run([BIN / service, *map(str, args)], capture_output=True, text=True,
                          timeout=60, env=dict(os.environ, **(env or SECRETS)))


def known_keys():
    """{section: {key}} as the binaries print them."""
    text = run("notifier", "--help").stdout
    sections, current = {}, None
    for line in text[text.index("\ndaemon:"):].splitlines():
        head = re.match(r"^([\w.<>\[\]]+):$", line)
        item = re.match(r"^  (\w+)(\s{2,}|$)", line)
        if head:
            current = sections.setdefault(head.group(1), set())
        elif current is not None and item:
            current.add(item.group(1))
        elif current is not None and re.match(r"^  \w+(\[\]|\{\})?, ", line):
            current.update(re.findall(r"\w+", line))
    return sections


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_accepts_the_sample(service):
    done = run(service, "--config", SAMPLE, "--check-config")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "configuration ok" in done.stdout + done.stderr


def test_sample_and_page_name_every_key():
    keys = known_keys()
    assert len(keys) > 14 and "url" in keys["database"] and "thumbprint" in keys["providers.<name>"]
    sample = SAMPLE.read_text()
    page = (ROOT / "docs" / "configuration.md").read_text()
    for section, names in keys.items():
        for name in names if section != "roles.<name>" else ():
            assert re.search(rf"^[ #-]*{name}:", sample, re.M), f"sample lacks {section}.{name}"
            assert f"`{name}`" in page, f"docs/configuration.md lacks {section}.{name}"


@pytest.mark.parametrize("service", SERVICES)
def test_an_unknown_key_is_an_error_with_file_and_line(service, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("daemon:\n  adress: 127.0.0.1:1\nbogus:\n  x: 1\n")
    done = run(service, "--config", file, "--check-config")
    assert done.returncode == 64, done.stdout + done.stderr
    text = done.stdout + done.stderr
    assert f"{file}:2: daemon.adress: unknown key (did you mean 'address'?)" in text
    assert f"{file}:4: bogus" in text


@pytest.mark.parametrize("service", SERVICES)
def test_an_unset_variable_names_itself(service, tmp_path):
    file = tmp_path / "env.yaml"
    file.write_text(SAMPLE.read_text().replace("log_level: info", "log_level: ${NO_SUCH_THING}"))
    done = run(service, "--config", file, "--check-config")
    assert done.returncode == 64
    assert "NO_SUCH_THING" in done.stdout + done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_help_tells_what_it_is(service):
    done = run(service, "--help")
    assert done.returncode == 0
    assert service in done.stdout and "--config" in done.stdout and "base_path" in done.stdout
    assert pathlib.Path(BIN / service).exists()
