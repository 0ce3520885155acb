"""A scripted hyper2kvm daemon in its mode "jobs" (hyper2kvm-contract.md 6.4): takes JSON files from
to_be_processed/ through processing/ to processed/<date>/ or failed/<date>/.

    daemon = Daemon(watch_dir, output_dir, "ok").start()

Modes: ok; failed; no_output (success without an image); busy (writes its output slowly until
`release` is set, then ok); idle (never takes a file); stuck (takes one and stops for ever);
vanish (takes one, takes it away, and is gone). `documents` are the files it read.

A file `restart` in the watch directory ends a hang: what it had begun stays in processing/, and it
goes on in mode `after`, by default ok."""
import contextlib
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import threading

FIX = "write -P 0x66 0 4k"


class Daemon:
    def __init__(self, watch_dir, output_dir, mode="ok"):
        self.watch = pathlib.Path(watch_dir)
        self.output = pathlib.Path(output_dir)
        self.mode = mode
        self.after = "ok"
        self.documents = []
        self.names = []
        self.release = threading.Event()
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        for name in ("to_be_processed", "processing", "processed", "failed"):
            (self.watch / name).mkdir(parents=True, exist_ok=True)

    def start(self):
        self.thread.start()
        return self

    def stop(self):
        self.ending.set()
        self.release.set()
        self.thread.join(60)

    def waiting(self):
        return sorted(p.name for p in (self.watch / "to_be_processed").iterdir())

    def processing(self):
        return sorted(p.name for p in (self.watch / "processing").iterdir())

    def _run(self):
        while not self.ending.wait(0.05):
            if self.mode == "idle":
                continue
            for name in self.waiting():
                if name.endswith((".json", ".yaml", ".yml")):
                    self._take(name)

    def _take(self, name):
        working = self.watch / "processing" / name
        shutil.move(self.watch / "to_be_processed" / name, working)
        document = json.loads(working.read_text())
        self.documents.append(document)
        self.names.append(name)
        if self.mode == "vanish":
            working.unlink()
            self.ending.set()
            return
        if self.mode == "stuck":
            restart = self.watch / "restart"
            while not self.ending.wait(0.05):
                if restart.exists():
                    restart.unlink()
                    self.mode = self.after
                    return
            return
        date = datetime.date.today().isoformat()
        try:
            if self.mode == "failed":
                raise RuntimeError("no root file system in the image")
            self._convert(document, self.output / date / working.stem)
        except Exception as e:
            self._end(working, "failed", date, "error", {"job_id": working.stem, "error": str(e)})
        else:
            self._end(working, "processed", date, "meta", {"job_id": working.stem,
                                                           "status": "success"})

    def _convert(self, document, directory):
        (directory / "work").mkdir(parents=True)
        (directory / "work" / "working-flattened.qcow2").write_bytes(b"left behind")
        if self.mode == "busy":
            with open(directory / "disk.qcow2.part", "wb") as f:
                while not self.release.wait(0.2):
                    f.write(os.urandom(8192))
                    f.flush()
                    os.fsync(f.fileno())
            if self.ending.is_set():
                raise RuntimeError("ended")
        if self.mode == "no_output":
            return
        part = directory / "disk.qcow2.part"
        for argv in (["qemu-io", "-f", "qcow2", "-c", FIX, document["input"]],
                     ["qemu-img", "convert", "-O", "qcow2", document["input"], part]):
            self._run_with_life(argv, directory / "work" / "log")
        part.rename(directory / "disk.qcow2")

    @staticmethod
    def _run_with_life(argv, log):
        """It shows that it lives, however long the program takes on a busy machine."""
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        with open(log, "ab") as f:
            while child.poll() is None:
                f.write(bytes(4096))
                f.flush()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.1)
        if child.returncode != 0:
            raise subprocess.CalledProcessError(child.returncode, argv)

    def _end(self, working, where, date, suffix, facts):
        target = self.watch / where / date
        target.mkdir(parents=True, exist_ok=True)
        shutil.move(working, target / working.name)
        path = target / f"{working.name}.{suffix}.json"
        if suffix == "error":  # as it is seen while it is written
            path.write_text("")
            self.ending.wait(0.5)
        path.write_text(json.dumps(facts))
