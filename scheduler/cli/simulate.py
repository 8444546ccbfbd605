"""`training-status simulate`: a tree of simulated mice, in the real formats."""

from __future__ import annotations

from pathlib import Path

import click

from scheduler.cli.options import option
from scheduler.cli.show import counter


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@option("--labs", default=3, show_default=True, type=click.IntRange(min=1), help="Labs.")
@option("--subjects", default=4, show_default=True, type=click.IntRange(min=1), help="Mice in each lab.")
@option("--days", default=60, show_default=True, type=click.IntRange(min=1), help="Days that each mouse is trained.")
@option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="The same seed, the same files.")
@option("--real-mouse", is_flag=True, help="Add the real mouse SWC_054, from the wheel of ibllib (CC BY 4.0).")
def simulate(directory: Path, labs: int, subjects: int, days: int, seed: int, real_mouse: bool) -> None:
    """Write a tree of simulated mice to DIRECTORY, which must be new or empty.

    \b
    training-status simulate mice --labs 2 --subjects 3 --days 30
    """
    from core.simulation.real_mouse import write_real_mouse
    from core.simulation.tree import simulate as write

    with counter("sessions written") as advance:
        count = write(directory, labs=labs, subjects=subjects, days=days, seed=seed, on_session=advance)
    click.echo(f"{count} sessions of {labs * subjects} simulated mice written to {directory}")
    if real_mouse:
        click.echo(f"{write_real_mouse(directory)} sessions of the real mouse SWC_054 added (IBL, CC BY 4.0)")
