"""Build the engine with sanitizers and run its tests on that build: `python tests/e2e/sanitize.py address,undefined` or `thread`."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Recorded by Python and torch themselves; the tests of the engine's own threads need no torch inside.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "report_bugs=1:halt_on_error=1",
}
RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}


def main(kinds: str) -> None:
    """Build, put the module in front of the installed one, and run."""
    build = ROOT / "build" / f"sanitize-{kinds.replace(',', '-')}"
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", f"-DSECATEUR_SANITIZE={kinds}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run(["cmake", "--build", build], check=True, stdout=subprocess.DEVNULL)
    module = next(build.glob(f"_engine*{sysconfig.get_config_var('SHLIB_SUFFIX')}"))
    # The C++ library too: the sanitizers look for what throws when they start, and Python itself does not bring it.
    preloaded = [
        subprocess.run(
            ["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for library in (RUNTIME[kinds.split(",")[0]], "libstdc++.so")
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("secateur", "secateur_engine"):
            (Path(folder) / name).mkdir()
        package = Path(folder) / "secateur_engine"
        for source in (ROOT / "src" / "secateur_engine").glob("*.py"):
            (package / source.name).symlink_to(source)
        (package / module.name).symlink_to(module)
        (Path(folder) / "secateur").rmdir()
        (Path(folder) / "secateur").symlink_to(ROOT / "src" / "secateur")
        environment = {
            **os.environ,
            **OPTIONS,
            "LD_PRELOAD": " ".join(preloaded),
            "PYTHONPATH": f"{folder}:{ROOT}:{sysconfig.get_path('purelib')}",
            "PYTHONMALLOC": "malloc",
            "OMP_NUM_THREADS": "1",
        }
        python = [
            sys.executable,
            "-S",
        ]  # without the hooks of an editable installation, which would find the other module
        subprocess.run([sys.executable, "tests/e2e/striped_model.py", folder], check=True, cwd=ROOT)
        program = [*python, "tests/e2e/engine_threads.py", folder]
        if "thread" not in kinds:
            program = [
                *python,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "tests/runtime",
                "-k",
                "not serving and not threads_that_fail",  # whose processes have a limit that the sanitizers do not keep
            ]
        subprocess.run(program, check=True, cwd=ROOT, env=environment)


if __name__ == "__main__":
    main(sys.argv[1])
