"""The server; ``PERSONALLLM_OPENENV`` says in JSON what it serves (see README.md)."""

import argparse

from personalllm_env.adapters.openenv.network import listen, serve
from personalllm_env.adapters.openenv.server import app_from_environment

app = app_from_environment()


def main() -> None:
    """Serves at an address; only to this machine unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    serve(app, listen(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
