"""`fastgan demo RUN`: a page to play with a run's generator, in a browser on this machine or on a phone beside it.

Nothing is asked of other hosts, and nothing told to them.
"""

import errno
import os
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastgan.errors import UserError
from fastgan.evaluation.generator import Generator
from fastgan.evaluation.sampling import CheckpointSelector
from fastgan.utils.fields import require

PORTS = range(7860, 7960)  # gradio's


@dataclass(frozen=True)
class DemoOptions:
    """Serve a page to play with a run's generator, until Ctrl-C."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, an export, or its OWNER/NAME on the hub."""
    host: str = "127.0.0.1"
    """The address to serve at. 0.0.0.0 is all of this machine's: whoever reaches it, a phone say, may use the page."""
    port: int | None = None
    """The port. Without it, 7860 or the next one that is free."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        require(self, "port", self.port is None or 0 < self.port < 2**16, "give a number from 1 to 65535")


def demo(options: DemoOptions) -> None:
    """Serve the page until a signal ends it. Raises UserError where gradio isn't installed, or the port is taken."""
    port = free_port(options.host, options.port)
    G = Generator.open(options.run, options.which)
    try:
        from fastgan.commands.demo.page import CSS, THEME, page
    except ImportError as error:
        raise UserError(f"the page needs gradio ({error}): pip install 'fastgan[demo]'") from None
    with tempfile.TemporaryDirectory(prefix="fastgan-demo-") as folder:
        # What was shown lies there, and goes with the page. Without a proxy: it asks itself whether it can be reached.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "no_proxy": "*"}
        made = page(G, options.run.resolve().name, Path(folder))
        try:
            _, address, _ = made.launch(
                server_name=f"[{options.host}]" if ":" in options.host else options.host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                theme=THEME,
                css=CSS,
            )
            print(f"{options.run}: {address}   (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        finally:
            made.close(verbose=False)


def free_port(host: str, port: int | None) -> int:
    """Return the port, or the first of PORTS that is free. Raises UserError where none is, or the host isn't ours."""
    for tried in PORTS if port is None else (port,):
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.bind(address)
            return tried
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"host is {host}, port {tried}: {error.strerror or error}; give others") from None
    taken = f"port is {port}: it is in use" if port else f"all ports from {PORTS[0]} to {PORTS[-1]} are in use"
    raise UserError(f"{taken}; give another --port")
