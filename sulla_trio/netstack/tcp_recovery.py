"""Recovery from loss: NewReno (RFC 6582), by SACK (RFC 6675), and after a time-out (RFC 6298 section 5).

These functions change the `Sender` that they are given; what they make due goes out with `tcp_output`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sulla_trio.netstack.seqnum import MASK
from sulla_trio.netstack.tcp_options import NEVER
from sulla_trio.netstack.tcp_sack import Scoreboard

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp_send import Sender

DUPLICATE_ACKS: Final = 3
"""RFC 5681 section 3.2."""


def acknowledged(snd: Sender, count: int) -> None:
    """RFC 6582 section 3.2: a full acknowledgment ends recovery, a partial one shows the next hole."""
    if (snd.una - snd.recover - 1) & 0x80000000 == 0:
        snd.recovering = False
        snd.dup_acks = 0
        if snd.board is None:  # with SACK it is SSTHRESH already
            snd.cwnd = max(min(snd.ssthresh, max(snd.flight, snd.mss) + snd.mss), snd.mss)
    elif snd.board is None:
        snd.resend_first = True
        snd.rtt_seq = None
        snd.cwnd = max(snd.cwnd - count + (snd.mss if count >= snd.mss else 0), snd.mss)


def duplicate_ack(snd: Sender) -> bool:
    """One more duplicate ACK while something is in flight; True when the connection has something to send now."""
    snd.dup_acks += 1
    if snd.recovering:
        snd.cwnd += snd.mss  # RFC 5681 section 3.2, step 4
    elif snd.dup_acks == DUPLICATE_ACKS and (snd.una - snd.recover - 1) & 0x80000000 == 0:
        _enter(snd)
        snd.cwnd += DUPLICATE_ACKS * snd.mss
        return True
    return snd.unsent > 0


def _enter(snd: Sender) -> None:
    snd.ssthresh = snd.cwnd = max(snd.flight // 2, 2 * snd.mss)
    snd.recover = (snd.max - 1) & MASK
    snd.recovering = snd.resend_first = True
    snd.rtt_seq = None


def sacked(snd: Sender, blocks: tuple[tuple[int, int], ...], *, duplicate: bool) -> bool:
    """SACK blocks came, in an ACK of nothing new if it is a `duplicate`; True when that begins a recovery (RFC 6675
    section 5)."""
    board = Scoreboard() if snd.board is None else snd.board
    news = board.update(blocks, snd.una, (snd.max - snd.una) & MASK, snd.mss)
    if not news:
        return False
    snd.board = board
    board.duplicates += duplicate
    begins = (
        not snd.recovering
        and (board.duplicates >= DUPLICATE_ACKS or board.is_lost)
        and (snd.una - snd.recover - 1) & 0x80000000 == 0
    )
    if begins:
        _enter(snd)
        board.enter_recovery()
    recount(snd, board)
    return begins


def recount(snd: Sender, board: Scoreboard) -> None:
    """The scoreboard has changed."""
    if board or snd.recovering:
        snd.gone = board.gone(snd.flight, recovering=snd.recovering)
    else:
        snd.board = None
        snd.gone = 0


def recovery_room(snd: Sender) -> int:
    """Octets that recovery by SACK may send now: cwnd - pipe."""
    return snd.cwnd - snd.flight + snd.gone


def timed_out(snd: Sender) -> None:
    """The retransmission timer expired: RFC 6298 section 5, RFC 5681 section 3.1, RFC 6582 section 4."""
    if not snd.retransmits:
        snd.ssthresh = max(snd.flight // 2, 2 * snd.mss)
    snd.retransmits += 1
    snd.rtt.back_off()
    snd.cwnd = snd.mss
    snd.dup_acks = 0
    snd.recovering = snd.resend_first = False
    snd.recover = (snd.max - 1) & MASK
    snd.retransmit_at = NEVER  # started again by what is sent
    snd.rewind()


def lower_mss(snd: Sender, mss: int) -> None:
    """The path takes less: what is in flight was too long, so it goes again, in pieces and without a penalty (RFC 1191
    section 6.4)."""
    snd.mss = mss
    snd.dup_acks = 0
    snd.recovering = snd.resend_first = False
    snd.recover = (snd.max - 1) & MASK
    snd.rewind()
