"""
The bodies of refunds, version 1; the rules are those of `gateway.wire`.
"""

from __future__ import annotations

import msgspec

from gateway.strict_json import Strict
from gateway.wire import (
    AmountInteger,
    MetadataObject,
    ReferenceText,
    Transfer,
    TransferIdText,
)


class RefundRequest(Strict, frozen=True):
    """
    Gives back what a transfer brought, or a part; without `amount` all that is left.
    """

    amount: AmountInteger | None = None
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None


class Refunds(msgspec.Struct, frozen=True):
    """
    What has gone back of a transfer. `refunded` counts also what is on its way, and what the
    reversal of a linked transfer took back; `left` is what may still go back, 0 of what is not
    posted or never goes back. `refunds` are those that were posted, the oldest first; `has_more`
    says that some were left out.
    """

    transfer_id: TransferIdText
    amount: int
    refunded: int
    left: int
    currency: str
    refunds: list[Transfer]
    has_more: bool
