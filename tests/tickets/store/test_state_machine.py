"""A ticket file's life as a state machine: whatever happens in whatever order, it agrees with a dictionary."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from makers.tampering import flip
from makers.tickets import make_header, make_specs, make_tickets

from dlth.tickets import TicketStore, TicketWriter
from dlth.tickets.errors import DamageError, DlthError, IncompleteError, InputError, MismatchError, MissingFileError

ROWS = (3, 1, 2)
SHARDS = st.integers(0, len(ROWS) - 1)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may handle it. (Real signals are in test_kill.py.)"""


class Life(RuleBasedStateMachine):
    """Writers (each a handle as another process would have it) against a dictionary shard -> written."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "t.zarr"
        self.writer = self.open()
        self.written: set[int] = set()
        self.finished = False
        self.damaged: Path | None = None
        self.claims = ExitStack()
        self.held: set[int] = set()

    def open(self) -> TicketWriter:
        return TicketWriter(self.path, make_header(), make_specs(ROWS), 12)

    def tickets(self, shard: int) -> Any:
        return make_tickets(shard, ROWS[shard])

    @precondition(lambda self: not self.damaged)
    @rule(shard=SHARDS)
    def write(self, shard: int) -> None:
        with self.writer.claim(shard) as mine:
            assert mine == (shard not in self.written | self.held and not self.finished)
            if mine:
                self.writer.write(shard, self.tickets(shard))
                self.written.add(shard)

    @precondition(lambda self: not self.damaged)
    @rule(shard=SHARDS, step=st.integers(0, 9))
    def killed_while_writing(self, shard: int, step: int) -> None:
        """Dies at the n-th of the calls that put files in place; the record comes last."""
        calls = 0

        def replace(old: Any, new: Any) -> None:
            nonlocal calls
            if calls == step:
                raise Killed
            calls += 1
            sound(old, new)

        sound = os.replace
        try:
            with pytest.MonkeyPatch.context() as patch, self.writer.claim(shard) as mine:
                patch.setattr(os, "replace", replace)
                if mine:
                    self.writer.write(shard, self.tickets(shard))
                    self.written.add(shard)
        except Killed:
            pass
        self.writer = self.open()

    @precondition(lambda self: not self.damaged and not self.finished)
    @rule(shard=SHARDS)
    def another_holds(self, shard: int) -> None:
        """A second writer claims a shard and keeps it."""
        if shard not in self.held:
            self.held |= {shard} if self.claims.enter_context(self.open().claim(shard)) else set()

    @rule()
    def another_dies(self) -> None:
        self.claims.close()
        self.held.clear()

    @precondition(lambda self: not self.damaged)
    @rule()
    def reopen(self) -> None:
        self.writer = self.open()
        assert self.writer.complete == self.finished
        assert set(self.writer.missing()) == (set() if self.finished else set(range(len(ROWS))) - self.written)

    @precondition(lambda self: not self.damaged)
    @rule()
    def other_settings(self) -> None:
        with pytest.raises(MismatchError, match="begun with other settings"):
            TicketWriter(self.path, make_header(creator="else"), make_specs(ROWS), 12)

    @precondition(lambda self: not self.damaged)
    @rule()
    def commit(self) -> None:
        self.another_dies()
        assert self.writer.finish() == (len(self.written) == len(ROWS))
        self.finished = len(self.written) == len(ROWS)

    @precondition(lambda self: not self.damaged and not self.finished and self.written)
    @rule(data=st.data())
    def corrupt_unfinished(self, data: st.DataObject) -> None:
        """A chunk of a written shard rots; committing says so, and that shard alone is done again."""
        shard = data.draw(st.sampled_from(sorted(self.written)))
        chunk = self.folder / "t.zarr.partial" / "store" / f"keys/c.{shard}.0.0"
        flip(chunk, 8 * data.draw(st.integers(0, chunk.stat().st_size - 1)))
        for other in set(range(len(ROWS))) - self.written:
            self.another_dies()
            self.write(other)
        with pytest.raises(DamageError, match="taken back: run the same command again"):
            self.writer.finish()
        self.written.discard(shard)
        assert self.writer.missing() == [shard]

    @precondition(lambda self: not self.damaged and self.finished)
    @rule(data=st.data())
    def corrupt_finished(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(file for file in self.path.rglob("*") if file.is_file())))
        self.backup = file.read_bytes()
        self.damaged = file
        flip(file, data.draw(st.integers(0, 8 * len(self.backup) - 1)))

    @precondition(lambda self: self.damaged)
    @rule()
    def fetched_again(self) -> None:
        assert self.damaged is not None
        self.damaged.write_bytes(self.backup)
        self.damaged = None

    @rule()
    def verify(self) -> None:
        if self.finished:
            try:
                found = TicketStore(self.path).verify()
            except DlthError as error:
                found = [error]
            assert bool(found) == bool(self.damaged)

    @invariant()
    def reads_what_was_written_or_refuses(self) -> None:
        """The one promise: a finished, sound file gives exactly the rows written; any other state is an error."""
        if not self.finished:
            with pytest.raises((IncompleteError, MissingFileError)):
                TicketStore(self.path)
            return
        try:
            store = TicketStore(self.path)
            shards = [store.read(shard) for shard in range(len(ROWS))]
        except DlthError:
            assert self.damaged
            return
        assert not self.damaged
        for shard, found in enumerate(shards):
            expected = self.tickets(shard)
            assert found.keys == expected.keys
            assert (found.patches == expected.patches).all()
            assert (found.images == expected.images).all()
            assert (found.gap == expected.gap).all()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.claims.close()
            shutil.rmtree(self.folder)


SETTINGS = settings(
    max_examples=int(os.environ.get("DLTH_EXAMPLES", "20")),  # `make torture` takes more
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="DLTH_EXAMPLES" not in os.environ,
    print_blob=True,
)


def test_any_life_agrees_with_the_model() -> None:
    """Write, kill, reopen, corrupt, second writer, commit, verify, read, in any order."""
    run_state_machine_as_test(Life, settings=SETTINGS)


def test_the_model_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With digests not compared, the same machine finds a state in which damage is read."""
    monkeypatch.setattr("dlth.tickets.store.reader.check_digest", lambda *arguments: None)
    one_phase = settings(SETTINGS, phases=[Phase.generate], max_examples=60, derandomize=True)
    with pytest.raises((AssertionError, pytest.fail.Exception, InputError)):  # the last: refused, but as another fault
        run_state_machine_as_test(Life, settings=one_phase)
