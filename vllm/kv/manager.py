"""The only door to the KV cache: lookups, reservations, publication, release.

Tables and lineages live here, by sequence number; a `Sequence` has no KV field. All calls are made
from the engine's loop, between steps, and none of them waits for anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from vllm.core.plan import BlockIO, Choice
from vllm.core.request import EngineStats
from vllm.core.retention import DEFAULT_PRIORITY, NO_HINTS, CacheHints
from vllm.kv.events import Events
from vllm.kv.evict import make
from vllm.kv.heads import Heads
from vllm.kv.hierarchy import Hierarchy, Hit
from vllm.kv.index import BlockId, Index
from vllm.kv.lineage import Key, Lineage, compressed
from vllm.kv.meeting import Meetings
from vllm.kv.names import Expected, Names
from vllm.kv.pool import BlockPool
from vllm.kv.prefetch import Prefetch
from vllm.kv.retention import FIRST_TO_GO, LAST_TO_GO, Uses
from vllm.kv.sessions import VERBS, Sessions
from vllm.kv.snapshots import Snapshots
from vllm.kv.spec import KVSpec
from vllm.kv.spill import Spilled
from vllm.kv.table import BlockTable

USES_A_BLOCK = 4  # blocks of any tier whose last use is remembered, for each on the device


class KVManager:
    """Block tables for all sequences over one pool of `num_blocks` blocks.

    `fingerprint` (see `kv.spec`) starts every key. With caching off nothing is looked up or
    published; everything else works the same way.
    """

    def __init__(
        self,
        spec: KVSpec,
        num_blocks: int,
        fingerprint: bytes,
        *,
        enable_caching: bool = True,
        policy: str = "lru",
    ) -> None:
        self.spec = spec
        self._block_size = spec.block_size
        self.caching = enable_caching
        self.policy = policy
        self.uses = Uses(USES_A_BLOCK * num_blocks, spec.block_size)
        self._index = Index()
        self._pool = BlockPool(num_blocks, make(policy), self._index, self.uses)
        self._tables: dict[int, BlockTable] = {}
        self._heads = Heads(spec, self._pool)  # of compressed sequences, which have no BlockTable
        self._names = Names(fingerprint, spec.block_size)
        self._expected = Expected()
        self._tiers: Hierarchy | None = None
        self._prefetch: Prefetch | None = None
        self._meetings: Meetings | None = None
        self._snapshots: Snapshots | None = None
        self.sessions = Sessions(self.uses.limit)
        self.events: Events | None = None
        self._pool.on_evict = self._evicted

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 to 1; what is only cached counts as free."""
        return (self._pool.held - self._in_snapshots) / self._pool.num_blocks

    @property
    def available(self) -> int:
        """Blocks that could be had now, were everything given up that no sequence holds."""
        return self._pool.available + self._in_snapshots

    @property
    def _in_snapshots(self) -> int:
        return 0 if self._snapshots is None else self._snapshots.held

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def lookup(self, tokens: Sequence[int], salt: str | None, limit: int) -> int:
        """How many leading tokens, at most `limit`, are cached, in whole blocks. Pins nothing."""
        return self.found(self.keys(tokens, salt, limit))[1]

    def keys(self, tokens: Sequence[int], salt: str | None, limit: int) -> Sequence[Key]:
        """The keys of the full blocks among the first `limit` tokens of a sequence."""
        lineage = self._names.new(salt)
        lineage.extend(tokens, min(limit, len(tokens)) // self._block_size)
        return lineage.keys()

    def found(self, keys: Sequence[Key]) -> tuple[int, int]:
        """Tokens of the leading run of these keys that are cached (on the device, in all tiers)."""
        device = total = len(self._index.leading(keys))
        if self._tiers is not None:
            total += len(self._tiers.find(keys[device:]))
        return device * self._block_size, total * self._block_size

    def probe(
        self, seq: int, tokens: Sequence[int], salt: str | None, limit: int
    ) -> tuple[int, int]:
        """What `admit` would find: cached leading tokens (on the device, in all tiers).

        Pins nothing. The keys that it hashes are kept for the admission of `seq`.
        """
        table = self._tables.get(seq)
        if table is not None:  # forked
            held = len(table.blocks) * self._block_size
            return held, held
        spilled = self._spilled(seq)
        if spilled is not None:
            return 0, spilled.tokens
        if not self.caching:
            return 0, 0
        return self.found(self._names.keys(seq, tokens, salt, limit))

    def seek(self, seq: int, tokens: Sequence[int], salt: str | None, limit: int) -> None:
        """A sequence has come: ask the shared store, if there is one, what it has of it.

        The keys that this hashes are kept for the admission of `seq`.
        """
        if self._tiers is None or self._tiers.seeker is None or not self.caching:
            return
        self._tiers.seek(seq, self._names.keys(seq, tokens, salt, limit))

    def seeks(self, seq: int) -> bool:
        """Whether the answer is worth waiting for, for a moment."""
        return self._tiers is not None and self._tiers.seeks(seq)

    def deferred(self, seq: int, tokens: Sequence[int], salt: str | None) -> bool:
        """Whether the first block that is in no tier is being computed by another sequence."""
        if not self.caching or seq in self._tables or self._spilled(seq) is not None:
            return False
        for key in self._names.keys(seq, tokens, salt, len(tokens) - 1):
            if self._index.block(key) is not None:
                continue
            if key in self._expected:
                return True
            if self._tiers is None or not self._tiers.has(key):
                return False
        return False

    def admit(
        self,
        seq: int,
        tokens: Sequence[int],
        *,
        salt: str | None = None,
        limit: int | None = None,
        headroom: int = 0,
        hints: CacheHints = NO_HINTS,
        may_meet: bool = False,
    ) -> int | None:
        """Give a sequence blocks for all of its tokens, sharing those that are cached.

        Returns how many leading tokens need not be computed, at most `limit` (by default all but
        the last token, which must be computed to sample the next). Some of them may be on their way
        from a slower tier: while `waits(seq)`, the sequence may not run; see `poll`. None, and
        nothing changes, when that would leave fewer than `headroom` blocks to those who run
        already. A forked sequence keeps the blocks that it has. The eviction policy learns of the
        hints what it may want to know. may_meet: the sequence may compute the beginning of what
        slower tiers have while the end is loaded; see `met`.
        """
        assert tokens, "an empty sequence cannot be admitted"
        limit = len(tokens) - 1 if limit is None else min(limit, len(tokens) - 1)
        table = self._tables.get(seq)
        if table is not None:
            table.cached = len(table.blocks) * self._block_size
            return self._fill(table, len(tokens), headroom)
        lineage = self._names.of(seq, salt)
        spilled = self._spilled(seq)
        if spilled is not None:
            return self._admit_spilled(seq, spilled, lineage, len(tokens), headroom, hints)
        keys = self._names.keys(seq, tokens, salt, limit) if self.caching else ()
        device, below = self._find(keys)
        front, loaded = 0, below
        if below and self._tiers is not None:
            needed = self.blocks_for(len(tokens)) + len(below) + headroom
            both = may_meet and self._pool.available >= needed
            front = self._tiers.to_compute(below, both=both)
            loaded = [] if front else below
        arriving = [hit.block for hit in loaded]
        shared = device + [block for block in arriving if block is not None]
        missing = self.blocks_for(len(tokens)) - len(shared)
        if not self._has_room(missing + headroom, shared):
            return None
        self._pool.share(shared)
        new = self._pool.allocate(missing)
        assert new is not None
        fresh = iter(new)
        self._names.drop(seq)
        table = BlockTable(lineage, hints=hints)
        found = len(device) + len(loaded)
        table.blocks = device
        table.blocks += [next(fresh) if block is None else block for block in arriving]
        table.blocks += fresh
        table.cached = found * self._block_size
        self._tables[seq] = table
        self._account(seq, table, found, loaded, tokens)
        if below and self._tiers is not None and self._meetings is not None:
            end = below[front:] if front else []
            self._tiers.cost.chose(load=not front, both=bool(end))
            if end:
                begin = (found + front) * self._block_size
                self._meetings.arrange(seq, begin, end)
        # While they are on their way, nobody may take its blocks for what they are to become.
        table.published = 0 if self.waits(seq) else found
        if self._prefetch is not None:
            self._prefetch.drop(seq)
        return table.cached

    def _fill(self, table: BlockTable, tokens: int, headroom: int) -> int | None:
        """Blocks for what a table that holds some lacks; the tokens that it needs not compute."""
        new = self._take(self.blocks_for(tokens) - len(table.blocks), headroom)
        if new is None:
            return None
        table.blocks += new
        return table.cached

    def _take(self, blocks: int, headroom: int = 0) -> list[BlockId] | None:
        """So many more blocks, if that leaves as many as `headroom`."""
        if not self._has_room(blocks + headroom):
            return None
        new = self._pool.allocate(blocks)
        assert new is not None
        return new

    def _has_room(
        self, blocks: int, shared: Sequence[BlockId] = (), spare: Key | None = None
    ) -> bool:
        """Whether so many can be had beside these, giving up for it what was only prefetched, and
        compressed prefixes but the one with the key `spare`."""
        if blocks <= self._pool.available - self._pool.unheld(shared):
            return True
        if self._prefetch is not None:
            self._prefetch.drop_all()
        missing = blocks - (self._pool.available - self._pool.unheld(shared))
        if self._snapshots is not None:
            return self._snapshots.give_up(missing, spare)
        return missing <= 0

    # ---- aside and back -----------------------------------------------------------------------

    def _spilled(self, seq: int) -> Spilled | None:
        """The sequence's copies, if they are of any use."""
        spilled = None if self._tiers is None else self._tiers.spills.of(seq)
        if spilled is None:
            self._heads.forget_aside(seq)
        return spilled

    def spill(self, seq: int, computed: int) -> bool:
        """Copy the KVs of so many tokens aside, to come back byte for byte at the next admission.

        The sequence loses its table; its blocks are free as their copies are made (`spilling`).
        False, and nothing changes, when no tier can take it.
        """
        if self._tiers is None or not computed:
            return False
        if seq in self._heads.tables:
            return self._spill_compressed(seq, computed)
        table = self._tables[seq]
        used = table.blocks[: self.blocks_for(computed)]
        if not self._tiers.spills.begin(seq, used, computed):
            return False
        self._release(seq)
        return True

    def _spill_compressed(self, seq: int, computed: int) -> bool:
        assert self._tiers is not None
        spills, table = self._tiers.spills, self._heads.tables[seq]
        held = int(table.counts.sum())
        if table.tokens != computed or not spills.accepts(-(-held // self.heads)):
            return False
        spills.begin_packed(seq, self._heads.pack(seq, spills.view), computed)
        self._heads.put_aside(seq)
        self._release(seq)
        return True

    def resumed(self, seq: int) -> bool:
        """Whether a sequence that has been admitted came back from aside."""
        if seq in self._heads.tables:
            return self.choice(seq) is None
        return self._tables[seq].resumed

    @property
    def spilling(self) -> bool:
        """Whether blocks are about to be free."""
        return self._tiers is not None and self._tiers.spills.going

    def _admit_spilled(
        self,
        seq: int,
        spilled: Spilled,
        lineage: Lineage,
        tokens: int,
        headroom: int,
        hints: CacheHints,
    ) -> int | None:
        assert self._tiers is not None
        if spilled.storing:
            return None
        count = self._heads.blobs(seq)
        if count is not None:
            # One more: for the KVs of the token that it computes next.
            blocks = self._take(count, 1 + headroom)
            if blocks is None:
                return None
            self._names.drop(seq)
            self._heads.take_back(seq, blocks)
            self._tiers.spills.bring_back(seq, blocks)
            return spilled.tokens
        table = BlockTable(lineage, cached=spilled.tokens, hints=hints, resumed=True)
        cached = self._fill(table, tokens, headroom)
        if cached is not None:
            self._names.drop(seq)
            self._tables[seq] = table
            self._tiers.spills.bring_back(seq, table.blocks[: len(spilled.names)])
        return cached

    # ---- what is found ------------------------------------------------------------------------

    def _find(self, keys: Sequence[Key]) -> tuple[list[BlockId], list[Hit]]:
        """The longest leading run that the device has, and how slower tiers prolong it."""
        device = self._index.leading(keys)
        return device, [] if self._tiers is None else self._tiers.find(keys[len(device) :])

    def _account(
        self, seq: int, table: BlockTable, found: int, loaded: list[Hit], tokens: Sequence[int]
    ) -> None:
        """What came of its first `found` blocks, the last of which are `loaded`, is written down;
        and that it is to compute the others."""
        size = self._block_size
        if found > len(loaded):
            table.sources["device"] = (found - len(loaded)) * size
        for hit in loaded:
            table.sources[hit.tier] = table.sources.get(hit.tier, 0) + size
        if not self.caching:
            return
        full = table.promised = len(tokens) // size
        table.lineage.extend(tokens, full)
        keys = table.lineage.keys()
        if self._pool.residency is not None:
            for key in keys[:found]:
                self._pool.residency.used(key, self.uses.now)
        if self._tiers is not None:
            self._tiers.write_back.used(keys[:found])
            blocks = table.blocks[found - len(loaded) : found]
            loads = [p for p in zip(loaded, blocks, strict=True) if p[0].tier != "device"]
            if loads:
                self._tiers.load(seq, loads)
        self._expected.add(keys[found:full], seq)

    def introduce(self, seq: int, salt: str | None, keys: Iterable[bytes]) -> None:
        """A sequence will be admitted whose first blocks have these keys."""
        self._names.introduce(seq, salt, keys)

    # ---- both at once -------------------------------------------------------------------------

    @property
    def meeting(self) -> bool:
        """Whether any sequence does that."""
        return self._meetings is not None and len(self._meetings) > 0

    def front(self, seq: int, computed: int) -> int | None:
        """At most how many tokens to compute next; None: any number."""
        return None if self._meetings is None else self._meetings.front(seq, computed)

    def met(self, seq: int, computed: int) -> Counter[str] | None:
        """Let a sequence go on behind what was loaded while it computed what is before.

        Returns how many tokens it need not compute now, by tier; its table is another, and `cached`
        says where it goes on. None: nothing has changed.
        """
        end = None if self._meetings is None else self._meetings.met(seq, computed)
        if end is None or self._meetings is None:
            return None
        saved = self._meetings.sources(seq, computed)
        table = self._tables[seq]
        first, last = computed // self._block_size, end // self._block_size
        assert table.published == first, "what it has computed is published"
        keys = table.lineage.keys()[first:last]
        loaded = [self._index.place(key) for key in keys]
        self._pool.share(loaded)
        self._pool.release(table.blocks[first:last])
        table.blocks[first:last] = loaded
        table.published, table.cached = last, end
        self._expected.drop(keys, seq)
        self._meetings.drop(seq)
        return saved

    # ---- transfers ----------------------------------------------------------------------------

    def waits(self, seq: int) -> bool:
        """Whether some of the sequence's blocks are still on their way from a tier."""
        return self._tiers is not None and self._tiers.loads.waits(seq)

    def poll(self) -> tuple[list[int], list[int]]:
        """(sequences whose blocks have all arrived, sequences that must be admitted anew).

        The latter have lost their tables: a load failed or was late, and is a shorter hit.
        """
        if self._tiers is None:
            return [], []
        ready, failed = self._tiers.poll()
        for seq in ready:
            if seq in self._heads.tables:
                self._heads.arrived(seq)
                continue
            table = self._tables[seq]
            table.published = sum(table.sources.values()) // self._block_size
        for seq in failed:
            self.release(seq)
        return ready, failed

    def wait(self, seconds: float) -> None:
        """Until a transfer is done, at most so long; for an engine that has nothing else to do."""
        if self._tiers is not None:
            self._tiers.mover.wait(seconds)

    def write_back(self) -> None:
        """Start copying down what is next in line to be evicted."""
        if self._tiers is not None:
            self._tiers.write_back.ahead()

    def tell(self, events: Events) -> None:
        """Tell these of all that is stored and removed from now on."""
        self.events = events
        if self._tiers is not None:
            self._tiers.events = events
            for level in self._tiers.levels:
                events.found(level.shelf.readable(), level.tier.name)

    def _evicted(self, keys: list[Key]) -> None:
        """The device has let these go."""
        if self._tiers is not None:
            self._tiers.write_back.evicted(keys)
        if self.events is not None:
            self.events.removed(keys, "device")

    def cached(self, seq: int) -> int:
        """Leading tokens of an admitted sequence that need not be computed."""
        table = self._heads.tables.get(seq)
        return self._tables[seq].cached if table is None else table.tokens

    def sources(self, seq: int) -> dict[str, int]:
        """Cached tokens of an admitted sequence by the tier that they came from."""
        table = self._tables.get(seq)
        if table is not None:
            return table.sources
        choice = self.choice(seq)
        return {} if choice is None else {"compressed": choice.tokens}

    @property
    def pool(self) -> BlockPool:
        return self._pool

    @property
    def index(self) -> Index:
        return self._index

    @property
    def tiers(self) -> Hierarchy | None:
        return self._tiers

    def attach(self, tiers: Hierarchy) -> None:
        """Put slower tiers under the device. Before the first admission."""
        self._tiers = tiers
        self._meetings = Meetings(tiers, self._pool, self._index, self._block_size)
        self.uses.limit += sum(level.shelf.capacity for level in tiers.levels)
        self.sessions.limit = self.uses.limit

    def enable_prefetching(self) -> None:
        """Let `prefetch` bring blocks up. After `attach`."""
        assert self._tiers is not None
        self._prefetch = Prefetch(self._tiers, self._pool)

    def prefetch(self, seq: int, tokens: Sequence[int], salt: str | None, limit: int) -> None:
        """Bring up what a sequence that waits will be admitted with, and keep it for that."""
        if self._prefetch is None or seq in self._tables or self._spilled(seq) is not None:
            return
        self._prefetch.want(seq, self._names.keys(seq, tokens, salt, limit))

    def keep_prefetched(self, seqs: set[int]) -> None:
        """Give back what was prefetched for others than these."""
        if self._prefetch is not None:
            self._prefetch.keep_only(seqs)

    def session(
        self, name: str, verb: str, ttl: float | None = None, salt: str | None = None
    ) -> int:
        """Carry out one of `sessions.VERBS` on the blocks of a session's latest turn.

        ttl: seconds for which a pin holds. salt: that of the session's requests. Returns how many
        blocks the session has in the cache.
        """
        assert verb in VERBS
        keys = self.sessions.keys(self._names.root(salt), name)
        if verb == "prefetch":
            if self._tiers is not None:
                self._pool.release(reversed(self._tiers.bring(keys, self._pool.available)))
        else:
            rank = {"pin": LAST_TO_GO, "demote": FIRST_TO_GO}.get(verb, DEFAULT_PRIORITY)
            expires = math.inf if verb != "pin" or ttl is None else self.uses.now + ttl
            for key in reversed(keys):
                self.uses.rank(key, rank, expires)
                self._pool.rank_anew(key)
                if self._tiers is not None:
                    self._tiers.rank_anew(key)
        return sum(self._has(key) for key in keys)

    def _has(self, key: Key) -> bool:
        below = self._tiers is not None and self._tiers.has(key)
        return below or self._index.block(key) is not None

    def grow(self, seq: int, tokens: int) -> list[int] | None:
        """Blocks added so that the table holds `tokens` tokens; None when there are too few.

        Head blocks, as `core.plan.StepPlan` wants them, where the sequence is compressed.
        """
        table = self._tables.get(seq)
        if table is None:
            return self._grow_heads(seq, tokens)
        if tokens <= len(table.blocks) * self._block_size:
            return []
        new = self._take(self.blocks_for(tokens) - len(table.blocks))
        if new is None:
            return None
        table.blocks += new
        return [*new]

    def _grow_heads(self, seq: int, tokens: int) -> list[int] | None:
        blocks = self._heads.blocks_to_grow(seq, tokens)
        if blocks and not self._has_room(blocks):
            return None
        added = self._heads.grow(seq, tokens)
        assert added is not None
        ids: list[int] = added.tolist()
        return ids

    def fork(self, parent: int, child: int, tokens: int) -> None:
        """Let `child` hold the parent's full blocks among its first `tokens` computed tokens.

        Shared blocks are never written again, by either: the child computes the rest itself.
        """
        source = self._tables[parent]
        full = tokens // self._block_size
        shared = source.blocks[:full]
        self._pool.share(shared)
        published = min(full, source.published)
        self._tables[child] = BlockTable(
            source.lineage.fork(published), list(shared), published, hints=source.hints
        )

    def publish(self, seq: int, tokens: Sequence[int], computed: int) -> None:
        """Offer the blocks that `computed` tokens have filled to everybody else.

        Called once the step that computed them has succeeded. A lossy sequence publishes nothing:
        rule R3 of the caching contract.
        """
        table = self._tables.get(seq)
        if table is None:  # compressed
            return
        full = computed // self._block_size
        if full <= table.published or not self.caching:
            return
        table.lineage.extend(tokens, full)
        keys = table.lineage.keys()[table.published : full]
        self._expected.published(keys)
        stored = self._pool.publish_all(table.blocks[table.published : full], keys)
        if self._tiers is not None:
            for key in keys:
                self._tiers.on_device(key)
            for i in stored:
                self._tiers.write_back.computed(keys[i])
        if self.events is not None:
            size = self._block_size
            for i in (table.published + i for i in stored):
                parent = table.lineage.key(i - 1) if i else None
                told = tokens[i * size : (i + 1) * size]
                self.events.stored(table.lineage.key(i), "device", parent, told)
        table.published = full

    def release(self, seq: int) -> None:
        """The sequence is done with its blocks; published ones stay cached, the end goes first.

        Where it computed a copy of what was published already, that was in use until now as well;
        and if it has been evicted since, the copy takes its place. So nothing that is cached is out
        of reach because what comes before it has gone.
        """
        if self._tiers is not None:
            self._tiers.forget(seq)
        if self._prefetch is not None:
            self._prefetch.drop(seq)
        self._heads.forget_aside(seq)
        self._release(seq)

    def _release(self, seq: int) -> None:
        if self._meetings is not None:
            self._meetings.drop(seq)
        self._names.drop(seq)
        self._heads.release(seq)
        if self._snapshots is not None:
            self._snapshots.forget(seq)
        table = self._tables.pop(seq, None)
        if table is not None:
            self._release_blocks(seq, table)

    def _release_blocks(self, seq: int, table: BlockTable) -> None:
        keys, published = table.lineage.keys(), table.published
        self._expected.drop(keys[published : table.promised], seq)
        if table.hints.session and published:
            self.sessions.note(table.lineage.root, table.hints.session, keys[:published])
        self._pool.release(reversed(table.blocks[published:]))
        uses = self.uses.used(keys[:published], table.hints)
        self._pool.release_used(table.blocks[:published], list(zip(keys, uses, strict=False)))

    # ---- compression --------------------------------------------------------------------------

    @property
    def heads(self) -> int:
        """Head blocks a block: layers times KV heads."""
        return self.spec.heads

    def blocks_to_reserve(self, kvs: int) -> int:
        """Blocks that `reserve` would take."""
        return self._heads.blocks_to_reserve(kvs)

    def reserve(self, seq: int, kvs: int) -> np.ndarray | None:
        """Head blocks, int32, for whatever a sequence keeps of at most `kvs` KVs over all heads.

        The first of two phases: `compact` ends it, or `release`. None, and nothing changes, when
        there are too few.
        """
        if not self._has_room(self._heads.blocks_to_reserve(kvs)):
            return None
        return self._heads.reserve(seq, kvs)

    def compact(self, seq: int, lengths: np.ndarray, tokens: int) -> None:
        """The sequence's KVs of `tokens` tokens were compressed to `lengths`, int [L, H].

        They were copied out into the reserved head blocks: rule R4 of the caching contract. What
        it held until now goes, published blocks into the cache; its lineage ends here.
        """
        table = self._tables.pop(seq, None)
        if table is not None:
            self._release_blocks(seq, table)
            table.lineage.lose()
        self._heads.settle(seq, lengths, tokens)

    # ---- compressed prefixes ------------------------------------------------------------------

    def share_compressed(self, io: BlockIO) -> None:
        """Let sequences share compressed prefixes. Before the first admission."""
        self._snapshots = Snapshots(self._pool, self._heads, io, self._block_size)

    def shared_key(self, tokens: Sequence[int], salt: str | None, shape: bytes) -> Key | None:
        """The key of a prefix that is compressed so; None where none are shared."""
        if self._snapshots is None:
            return None
        return compressed(self._names.root(salt), tokens, shape)

    def share(self, seq: int, key: Key, choice: Choice) -> None:
        """Keep what a sequence has just been compressed to for others, as long as there is room."""
        assert self._snapshots is not None
        self._snapshots.keep(key, seq, choice)

    def shared_tokens(self, key: Key) -> int:
        """The tokens of the compressed prefix with this key; 0: there is none."""
        snapshot = None if self._snapshots is None else self._snapshots.find(key)
        return 0 if snapshot is None else snapshot.choice.tokens

    def could_share(self, kvs: int) -> bool:
        """Whether a compressed prefix of at most so many KVs is surely not too large to keep."""
        if self._snapshots is None:
            return False
        return self._snapshots.takes(self.spec.blocks_at_most(kvs))

    def admit_shared(self, seq: int, key: Key, tokens: int, headroom: int) -> int | None:
        """Let a sequence begin with a copy of the compressed prefix, if there is one.

        Returns how many tokens that saves. None, and nothing changes, when there is none, too
        little room to go on to `tokens` tokens, or when the sequence has something to come back to.
        """
        snapshot = None if self._snapshots is None else self._snapshots.find(key)
        if snapshot is None or self.holds(seq) or self._spilled(seq) is not None:
            return None
        assert self._snapshots is not None
        if not self._has_room(self._snapshots.missing(snapshot, tokens) + headroom, spare=key):
            return None
        self._names.drop(seq)
        if self._prefetch is not None:
            self._prefetch.drop(seq)
        return self._snapshots.begin(seq, key).tokens

    def choice(self, seq: int) -> Choice | None:
        """The compressed prefix that an admitted sequence began with."""
        return None if self._snapshots is None else self._snapshots.begun(seq)

    # ---- what a sequence holds ----------------------------------------------------------------

    def compressed(self, seq: int) -> bool:
        return seq in self._heads.tables

    def kept(self, seq: int, tokens: int) -> int:
        """KVs over all layers and heads that the sequence holds of its first `tokens` tokens."""
        table = self._heads.tables.get(seq)
        if table is None:
            return tokens * self.heads
        return table.total - (table.tokens - tokens) * self.heads

    def head_lengths(self, seq: int, tokens: int) -> list[list[int]]:
        """The KVs of each head, [L][H], that the sequence holds of its first `tokens` tokens."""
        table = self._heads.tables.get(seq)
        if table is None:
            return [[tokens] * self.spec.num_kv_heads for _ in range(self.spec.num_layers)]
        lengths: list[list[int]] = (table.lengths - (table.tokens - tokens)).tolist()
        return lengths

    def holds(self, seq: int) -> bool:
        return seq in self._tables or seq in self._heads.tables

    def prompt_keys(self, seq: int, tokens: int) -> Sequence[Key]:
        """The keys of an admitted sequence's full blocks among its first `tokens` tokens."""
        if seq not in self._tables:
            return ()
        lineage = self._tables[seq].lineage
        return () if lineage.lossy else lineage.keys()[: tokens // self._block_size]

    def blocks(self, seq: int) -> list[BlockId]:
        """The sequence's table; the caller must not change it."""
        return self._tables[seq].blocks

    def head_blocks(self, seq: int) -> np.ndarray | None:
        """Those of a compressed sequence, in the order of heads, int32; None: it is not one."""
        table = self._heads.tables.get(seq)
        return None if table is None else table.held

    def capacity(self, seq: int) -> int:
        """Tokens for whose KVs the sequence has room."""
        table = self._heads.tables.get(seq)
        if table is not None:
            return table.tokens
        return len(self._tables[seq].blocks) * self._block_size

    def reset(self, *, below: bool = True) -> bool:
        """Forget all cached content, or only the device's. False while sequences hold any of it.

        Nothing changes then.
        """
        if self._tiers is not None and self._tiers.busy:
            return False
        if self._prefetch is not None:
            self._prefetch.drop_all()
        if not self._pool.forget_cached():
            return False
        if self._snapshots is not None:
            self._snapshots.clear()
        if below or self._tiers is None:
            self.sessions.clear()
            if self.events is not None:
                self.events.cleared()
        return self._tiers is None or not below or self._tiers.reset()

    def add_stats(self, stats: EngineStats) -> None:
        """What the tiers have done, and how long blocks lived, for the engine's statistics."""
        residency = self._pool.residency
        if residency is not None:
            told = residency.take()
            stats.block_lifetimes, stats.block_idles = told.lifetimes, told.idles
            stats.block_gaps = told.gaps
        if self._tiers is not None:
            cost = self._tiers.cost
            stats.chose_load, cost.chose_load = cost.chose_load, 0
            stats.chose_compute, cost.chose_compute = cost.chose_compute, 0
            stats.chose_both, cost.chose_both = cost.chose_both, 0
            stats.tiers = self._tiers.stats()

    def check(self) -> None:
        """AssertionError unless every invariant of pool, index and tables holds."""
        holders = [table.blocks for table in self._tables.values()]
        if self._tiers is not None:
            holders.append(self._tiers.held_blocks())
        if self._meetings is not None:
            holders.append(self._meetings.blocks())
        if self._prefetch is not None:
            holders.append(self._prefetch.blocks())
        holders.append(list(self._heads.slabs.blocks()))
        if self._snapshots is not None:
            holders.append(list(self._snapshots.blocks()))
            self._snapshots.check()
        self._heads.check()
        assert not self._heads.tables.keys() & self._tables.keys()
        self.sessions.check()
        self._pool.check(holders)
        for table in self._tables.values():
            assert table.published <= len(table.blocks)
        assert not any(seq in self._names for seq in self._tables)
        assert self._expected.sequences() <= self._tables.keys()
        if self._tiers is not None:
            self._tiers.check()
