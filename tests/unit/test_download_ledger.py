"""The ledger of a download: what was taken, given back and written always adds up to the file."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dreamforge.models.download.ledger import Ledger, Piece
from dreamforge.models.download.saved_state import SavedState, load, save

SIZE = 200


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "write", "give back"]), st.integers(1, 60)), max_size=60))
def test_nothing_is_brought_twice_and_nothing_is_forgotten(actions: list[tuple[str, int]]) -> None:
    ledger = Ledger(size=SIZE, most=SIZE)
    there = bytearray(SIZE)
    taken: list[Piece] = []

    def write(piece: Piece, count: int) -> None:
        for place in range(piece.at, piece.at + count):
            assert not there[place]
            there[place] = 1
        ledger.wrote(piece, count)

    for action, number in actions:
        if action == "take" and (piece := ledger.take(number)):
            taken.append(piece)
        elif action == "write" and taken:
            piece = taken[number % len(taken)]
            write(piece, min(number, piece.end - piece.at))
        elif action == "give back" and taken:
            ledger.give_back(taken.pop(number % len(taken)))
        assert ledger.done_bytes == sum(there)
        assert ledger.frontier == (there.index(0) if 0 in there else SIZE)
        assert bytes(there) == b"".join(
            bytes([any(begin <= place < end for begin, end in ledger.done)]) for place in range(SIZE)
        )
        assert Ledger(size=SIZE, most=SIZE, done=ledger.done).done == ledger.done
    for piece in taken:
        ledger.give_back(piece)
    while (piece := ledger.take(20)) is not None:
        write(piece, piece.end - piece.at)
        ledger.give_back(piece)
    assert ledger.is_whole
    assert ledger.done == ((0, SIZE),)


def test_a_file_whose_size_is_learned_ends_there() -> None:
    ledger = Ledger(size=None, most=10**12)
    piece = ledger.take(100)
    assert piece is not None
    ledger.learn_size(42)
    assert piece.end == 42
    assert not ledger.is_missing_more
    ledger.wrote(piece, 42)
    ledger.give_back(piece)
    assert ledger.is_whole


def test_what_was_there_before_is_no_gain() -> None:
    ledger = Ledger(size=100, most=100, done=[(0, 50)])
    assert not ledger.has_gained()
    ledger.begin_anew(size=100)
    piece = ledger.take(100)
    assert piece is not None
    ledger.wrote(piece, 50)
    assert not ledger.has_gained()
    ledger.wrote(piece, 1)
    assert ledger.has_gained()
    assert not ledger.has_gained()


def test_a_piece_of_before_counts_for_nothing_afterwards() -> None:
    ledger = Ledger(size=100, most=100)
    piece = ledger.take(60)
    assert piece is not None
    ledger.begin_anew(size=100)
    ledger.give_back(piece)
    fresh = ledger.take(100)
    assert fresh is not None
    assert (fresh.at, fresh.end) == (0, 100)
    assert ledger.take(1) is None


def test_what_is_written_down_is_read_again(tmp_path: Path) -> None:
    state = SavedState(size=100, etag='"ä"', last_modified=None, done=((0, 10), (20, 30)))
    save(state, tmp_path / "state")
    assert load(tmp_path / "state") == state
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_makes_no_sense_is_not_read(tmp_path: Path) -> None:
    for done in (((5, 2),), ((0, 10), (5, 20)), ((-5, 2),), ((0, 101),)):
        save(SavedState(size=100, etag=None, last_modified=None, done=done), tmp_path / "state")
        assert load(tmp_path / "state") is None
