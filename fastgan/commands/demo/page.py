"""The page, made of gradio's parts."""

import functools
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from fastgan.commands.demo.images import (
    IN_TURN,
    MAX_COLUMNS,
    MAX_TRUNCATION,
    draw_between,
    draw_grid,
    draw_moved,
    draw_one,
    make_gif,
    next_seeds,
    other_seeds,
)
from fastgan.errors import UserError, machine_error
from fastgan.evaluation.generator import Generator

LOOK_EVERY_S = 0.05  # whether there are requests
THEME = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"])
CSS = """
.gradio-container > .main { width: 100%; max-width: 1100px !important; }
.picture img { max-height: 80vh; }
"""


def answer(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a mistake, or a machine that lacks something, as a message on the page."""

    @functools.wraps(draw)
    def run(*given: Any) -> Any:
        try:
            return draw(*given)
        except UserError as error:
            text = str(error)
        except (OSError, MemoryError, RuntimeError) as error:
            said = machine_error(error)
            if said is None:
                raise
            text = said
        raise gr.Error(html.escape(text, quote=False), print_exception=False)

    return run


def page(G: Generator, name: str, folder: Path) -> Any:
    """Return the page, a `gradio.Blocks`, of a generator; GIFs lie in the folder."""
    with gr.Blocks(title=f"{name}: fastgan demo", analytics_enabled=False, delete_cache=(600, 3600)) as made:
        gr.Markdown(f"## {name}\n{_facts(G)}")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                pictures = [_picture(visible=number == 0) for number in range(3)]
            with gr.Column(scale=2, min_width=320):
                tabs = gr.Tabs()
                controls = _controls(G)
                one = _picture(visible=False)
        with tabs:
            with gr.Tab("Images") as images:
                _images_tab(G, made, controls, pictures[0], one)
            with gr.Tab("Between two") as between:
                _between_tab(G, made, controls, pictures[1])
            with gr.Tab("Walk") as walk:
                _walk_tab(G, folder, controls, pictures[2])
        for place, tab in enumerate((images, between, walk)):
            show = functools.partial(_show_only, place)
            tab.select(show, None, [*pictures, one], queue=False, api_visibility="private")
    # It looks for requests a thousand times a second, and for their progress, which we don't show, a hundred times.
    made._queue.sleep_when_free, made._queue.progress_update_sleep_when_free = LOOK_EVERY_S, 1
    return made


def _facts(G: Generator) -> str:
    channels, height, width = G.image_shape
    facts = [f"{width}x{height}", {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")]
    facts += [f"{G.num_classes} classes"] * bool(G.num_classes) + [f"{G.images_seen:,} images seen"]
    return ", ".join(facts)


def _show_only(place: int) -> list[dict[str, Any]]:
    """Let the picture of the tab at the place be seen; an image that was chosen goes with the tab."""
    return [gr.update(visible=number == place) for number in range(3)] + [gr.update(visible=False)]


def _controls(G: Generator) -> list[Any]:
    """What all images have in common, in the order of `told`."""
    note = "Below 1: more alike; above: stranger"
    found = [gr.Slider(0, MAX_TRUNCATION, 1, step=0.05, label="Truncation", info=note)]
    if G.num_classes:
        choices = [("in turn", IN_TURN), *((name, number) for number, name in enumerate(G.class_names))]
        found.append(gr.Dropdown(choices, value=IN_TURN, label="Class"))
    if G.vector_dim:
        with gr.Accordion("Vector"):
            found += [gr.Slider(-1, 1, 0, step=0.05, label=str(number)) for number in range(1, G.vector_dim + 1)]
    return found


def _picture(visible: bool) -> Any:
    """A place for a picture."""
    options = {"show_label": False, "interactive": False, "buttons": ["download", "fullscreen"]}
    return gr.Image(format="png", elem_classes="picture", visible=visible, **options)


def _on(triggers: list[Any], draw: Callable[..., Any], inputs: list[Any], outputs: list[Any], **options: Any) -> Any:
    """Let the function answer events, one request after the other; of one page's the newest is enough."""
    options = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private", **options}
    return gr.on(triggers, answer(draw), inputs, outputs, concurrency_id="G", concurrency_limit=1, **options)


def _changes(controls: list[Any]) -> list[Any]:
    return [control.input for control in controls]


def _images_tab(G: Generator, made: Any, controls: list[Any], picture: Any, one: Any) -> None:
    seeds = gr.Textbox("0-15", label="Seeds", info="0-15, or 1,5,8-11", max_length=200)
    with gr.Row():
        following = gr.Button("Next seeds", size="md", min_width=100)
        others = gr.Button("Random seeds", size="md", min_width=100)
    columns = gr.Slider(1, MAX_COLUMNS, 4, step=1, label="Columns")
    inputs = [seeds, columns, *controls]
    draw = functools.partial(draw_grid, G)

    def pick(event: gr.SelectData, *given: Any) -> Any:
        image, name = draw_one(G, *given[:2], event.index, *given[2:])
        return gr.Image(image, label=name, show_label=True, visible=True)

    _on([made.load, seeds.submit, seeds.blur, columns.input, *_changes(controls)], draw, inputs, [picture])
    _on([picture.select], pick, inputs, [one], scroll_to_output=True)
    for button, move in ((following, next_seeds), (others, other_seeds)):
        _on([button.click], functools.partial(draw_moved, G, move), inputs, [seeds, picture])


def _between_tab(G: Generator, made: Any, controls: list[Any], picture: Any) -> None:
    with gr.Row():
        first = gr.Textbox("0", label="First seed", min_width=100)
        last = gr.Textbox("1", label="Second seed", min_width=100)
    share = gr.Slider(0, 1, 0.5, step=0.01, label="From first to second")
    triggers = [made.load, share.input, first.submit, first.blur, last.submit, last.blur, *_changes(controls)]
    _on(triggers, functools.partial(draw_between, G), [first, last, share, *controls], [picture])


def _walk_tab(G: Generator, folder: Path, controls: list[Any], picture: Any) -> None:
    seeds = gr.Textbox("0-7", label="Seeds", info="The walk ends where it began.", max_length=200)
    frames = gr.Slider(1, 32, 12, step=1, label="Frames between seeds")
    button = gr.Button("Make a GIF", variant="primary")
    make = functools.partial(make_gif, G, folder)
    _on([button.click, seeds.submit], make, [seeds, frames, *controls], [picture], show_progress="full")
