"""How reports come in, many at a time: checked beside the loop, stored in one transaction, then told to rollouts.

`waiting` gathers reports that come while others are being stored, `checking` verifies signatures (pure), `storing`
is the transaction. Built by `composition` and `devices`; called by `link`.
"""
