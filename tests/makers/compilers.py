"""What inductor needs of a machine besides torch: a compiler, and the headers of this Python."""

import os
import shutil
import subprocess
import sysconfig


def inductor_lacks(device_type: str) -> str:
    """What inductor calls for a device, "cuda" or "cpu", and does not find here; empty if nothing.

    On a GPU that is Triton, which compiles its driver's C with what CC names, gcc or clang; on a CPU inductor itself,
    C++ with what CXX names or g++. Both include Python.h, which a distribution's Python has in a package of its own.
    """
    language, variable, names = ("C", "CC", ("gcc", "clang")) if device_type == "cuda" else ("C++", "CXX", ("g++",))
    found = next(filter(shutil.which, [os.environ[variable]] if variable in os.environ else names), None)
    if found is None:
        return f"a {language} compiler, which inductor calls ({variable}, {', '.join(names)})"
    folder = sysconfig.get_path("include", scheme="posix_prefix")
    asked = [found, "-E", "-x", language.lower(), f"-I{folder}", "-"]
    done = subprocess.run(asked, input="#include <Python.h>\n", capture_output=True, text=True)
    return f"Python.h, which {found} does not find in {folder} (Debian: python3-dev)" if done.returncode else ""
