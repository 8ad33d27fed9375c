"""The `loragate` command. Client commands talk to a running gateway's admin API and import nothing heavy.

A command's module is imported when the command is used: `loragate --help` must not pay for FastAPI or SQLAlchemy.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util

import click

from adapters.errors import ServiceError

# name → module, attribute, the line in --help
COMMANDS = {
    "up": ("gateway.cli.local", "up", "Run everything on this machine: engine, gateway, demo adapters."),
    "serve": ("gateway.cli.serve", "serve", "Run the gateway alone, in front of engines that already run."),
    "doctor": ("gateway.cli.local", "doctor", "Say what this machine has and what is missing."),
    "status": ("gateway.cli.status", "status", "Show engines, adapters and keys of the running gateway."),
    "keys": ("gateway.cli.keys", "keys", "Create, list, rotate and revoke API keys."),
    "adapters": ("gateway.cli.adapters", "adapters", "Register, promote, roll back and remove LoRA adapters."),
    "datasets": ("gateway.cli.datasets", "datasets", "Check, convert, split, mix and filter training data."),
    "train": ("gateway.cli.train", "train", "Plan a training run, run it, or run it again."),
    "eval": ("gateway.cli.eval", "eval_", "Compare a version with the base and with what is live."),
    "jobs": ("gateway.cli.jobs", "jobs", "List, watch, pause and cancel training jobs."),
    "export": ("gateway.cli.export", "export", "Take an adapter, or a merged model, out of the gateway."),
    "migrate": ("gateway.cli.migrate", "migrate", "Bring fine-tuned models over from OpenAI's service."),
    "feedback": ("gateway.cli.feedback", "feedback", "List, export and remove what callers said about answers."),
    "worker": ("gateway.cli.worker", "worker", "Run the worker that carries out training jobs."),
    "usage": ("gateway.cli.usage", "usage", "Show requests and tokens per key, model and day."),
}

SETTINGS = {"help_option_names": ["-h", "--help"]}  # inherited by every command


class LazyGroup(click.Group):
    """Finds commands in COMMANDS; a module that is not installed has no commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (module, _, _) in COMMANDS.items() if importlib.util.find_spec(module) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Click's own would look for similar names among the commands that are loaded: none."""
        names = self.list_commands(ctx)
        if args[0] in names or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], names, n=1)
        return ctx.fail(f"No such command '{args[0]}'." + "".join(f" Did you mean '{name}'?" for name in near))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except ServiceError as error:  # an expected failure is one sentence, exit code 1
            if as_json:
                _document(error.message, error.code)
            raise click.ClickException(error.message) from None
        except click.UsageError as error:
            if as_json:
                _document(error.format_message(), "usage")
            raise


def _document(message: str, code: str) -> None:
    """The one document of --json, where a command did not come to write its own."""
    from gateway.cli import output

    output.document({"error": {"message": message, "type": "cli_error", "param": None, "code": code}})


@click.group(cls=LazyGroup, epilog="Example: loragate keys create --name my-app", context_settings=SETTINGS)
@click.version_option(package_name="loragate", prog_name="loragate")
def main() -> None:
    """OpenAI-compatible gateway: one base model on vLLM, many LoRA adapters beside it.

    The data directory is --data-dir, else LORAGATE_HOME, else the platform's user data directory.
    """
