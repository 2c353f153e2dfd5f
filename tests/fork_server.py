"""Runs the command line in children that are stopped at a chosen file-system event: by a signal, or by a full disk.

One process imports torch and forks a life a time, as importing is most of the cost of a life. Run as a script it is
that process; `Lives` starts it.

An event is an audited call that changes something below a folder (a file opened for writing, a rename, a folder made or
removed), the first and the second half of each `os.write`, and each `os.fsync`. Writes of native libraries raise no
audit events; those of the index's engine count before and after each call.
"""

import contextlib
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
TOKEN = "hf_a-secret-of-the-user"  # what every life has in its environment
TAKES_SPACE = {"open", "os.mkdir", "os.link", "os.symlink", "os.write", "os.fsync"}


@dataclass(frozen=True)
class Life:
    """How a life ended: by which signal (0: none) or with which exit code, and what it said."""

    signal: int
    code: int
    events: int
    out: str
    err: str

    def lines(self):
        """What stands on stderr besides progress, and besides what bitsandbytes says where it is imported."""
        lines = [line.rpartition("\r")[2] for line in self.err.split("\n")]
        noise = ("[", "Failed to load CPU gemm", "Writing model")
        return [line for line in lines if line and not line.startswith(noise)]


class Lives:
    """The process that forks lives; close it in the end."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_TOKEN": TOKEN}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def live(self, words, root, stop="", at=0):
        """Run a command; `stop` is "SIGKILL", another signal, or "full", at the `at`-th event below `root`."""
        self.begin(words, root, stop, at)
        return self.end()

    def begin(self, words, root, stop="", at=0):
        """Start a command, and return the pid of its life; `end` must follow."""
        request = {"words": [str(word) for word in words], "root": str(root), "stop": stop, "at": at}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def end(self):
        """Wait for the end of the life that was begun."""
        return Life(**json.loads(self._server.stdout.readline()))

    def close(self):
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


class Events:
    """Counts the events below a folder, and stops the process at one of them."""

    def __init__(self, root, stop, at):
        self.root, self.stop, self.at, self.count = root, stop, at, 0

    def install(self):
        write = os.write

        def halved(descriptor, data):
            """A write in two halves, so that a file can be left half written."""
            if not self._below_root(descriptor):
                return write(descriptor, data)
            self.happens("os.write")
            done = write(descriptor, data[: len(data) // 2])
            self.happens("os.write")
            return done + write(descriptor, data[len(data) // 2 :])

        def flushed(descriptor):
            if self._below_root(descriptor):
                self.happens("os.fsync")
            # A kill leaves the kernel's buffers alone: flushing changes nothing here but the time.

        os.write, os.fsync = halved, flushed
        sys.addaudithook(self._audited)
        self._watch_engine()

    def happens(self, name):
        if self.stop == "full":
            if name in TAKES_SPACE:
                self.count += 1
                if self.count >= self.at > 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), getattr(signal, self.stop))

    def _audited(self, name, arguments):
        if name == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and self._is_ours(path):
                self.happens(name)
        elif name in CHANGES and self._is_ours(arguments[0]):
            self.happens(name)

    def _is_ours(self, path):
        """Tell whether a path lies below the folder; a relative one is of a folder that is being removed."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.fsdecode(path)
        return text.startswith(self.root) or not text.startswith("/")

    def _below_root(self, descriptor):
        with contextlib.suppress(OSError):
            return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(self.root)
        return False

    def _watch_engine(self):
        from tunewise.retrieval.engines import Folder

        def watched(call):
            def counted(*given, **named):
                self.happens("engine")
                result = call(*given, **named)
                self.happens("engine")
                return result

            return counted

        for name in ("write", "delete", "delete_ids", "flush", "optimize"):
            setattr(Folder, name, watched(getattr(Folder, name)))
        Folder.create = watched(Folder.create)


class _Hub:
    """What of the Hub's client is used, without a network: a commit is one request."""

    def create_repo(self, repo, private=False, exist_ok=False):
        import huggingface_hub

        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def create_commit(self, repo, operations, commit_message):
        return type("Done", (), {"oid": "abc"})()


def live(request):
    """Be one life: run the command, and end the process."""
    import huggingface_hub

    from tunewise.cli import main

    huggingface_hub.HfApi = _Hub
    events = Events(request["root"], request["stop"], request["at"])
    sys.argv = ["tunewise", *request["words"]]
    code = 0
    events.install()
    try:
        main.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code, events.count


# What the lives need, and import once.
IMPORTED = (
    "peft",
    "scipy.stats",
    "sentence_transformers",
    "sklearn.metrics",
    "transformers.models.llama.modeling_llama",
    "tunewise.adaptation.fit",
    "tunewise.advice.atlas.from_comparison",
    "tunewise.cli.main",
    "tunewise.comparison.request",
    "tunewise.export.export",
    "tunewise.export.push",
    "tunewise.retrieval.build",
    "tunewise.serve.loading",
)


def serve():
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    from tunewise.comparison import compare
    from tunewise.results.estimate import Estimate
    from tunewise.techniques.registry import all_techniques

    all_techniques()
    # The estimate measures the machine, which takes longer than all the rest of a tiny comparison; it writes nothing.
    compare.expected = lambda *given, **named: Estimate(startup=0.0, rows=())
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            readable, writable = os.pipe()
            child = os.fork()
            if not child:
                # Where the tests run in the background, Ctrl-C is ignored, and a child would inherit that.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                code, count = live(request)
                os.write(writable, str(count).encode())
                os._exit(code)
            print(child, file=answers, flush=True)
            os.close(writable)
            with os.fdopen(readable) as counted:
                events = int(counted.read() or 0)
            _, status = os.waitpid(child, 0)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        answer = {"signal": killed, "code": code, "events": events, "out": texts[0], "err": texts[1]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    serve()
