"""A KV manager that is slow and obvious: prefixes in a dictionary, blocks as plain objects."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Block:
    name: tuple | None = None  # (salt, all tokens up to this block's end) once published
    refs: int = 0


@dataclass
class Table:
    salt: str | None
    blocks: list[Block] = field(default_factory=list)
    names: list[tuple] = field(default_factory=list)  # of the blocks that were offered


class Twin:
    def __init__(self, total: int, size: int, caching: bool = True) -> None:
        self.total, self.size, self.caching = total, size, caching
        self.tables: dict[int, Table] = {}
        self.known: dict[tuple, Block] = {}  # published, and not evicted
        self.unused: list[tuple] = []  # known names that no table holds, longest unused first

    @property
    def held(self) -> int:
        return len({id(b) for t in self.tables.values() for b in t.blocks})

    @property
    def free(self) -> int:
        return self.total - self.held - len(self.unused)

    def prefixes(self, tokens, salt, limit) -> list[tuple]:
        """Names of the longest cached prefix, block by block."""
        found = []
        for end in range(self.size, min(limit, len(tokens)) + 1, self.size):
            name = (salt, tuple(tokens[:end]))
            if name not in self.known:
                break
            found.append(name)
        return found

    def admit(self, seq, tokens, salt=None, limit=None, headroom=0) -> int | None:
        limit = len(tokens) - 1 if limit is None else min(limit, len(tokens) - 1)
        need = -(-len(tokens) // self.size)
        if seq in self.tables:
            table = self.tables[seq]
            had = len(table.blocks)
            if need - had + headroom > self.free + len(self.unused):
                return None
        else:
            names = self.prefixes(tokens, salt, limit) if self.caching else []
            had = len(names)
            spare = self.free + len([n for n in self.unused if n not in names])
            if need - had + headroom > spare:
                return None
            self.tables[seq] = table = Table(salt, [self.known[n] for n in names], names)
            for block in table.blocks:
                block.refs += 1
                if block.name in self.unused:
                    self.unused.remove(block.name)
        self.take(table, need - had)
        return had * self.size

    def take(self, table: Table, count: int) -> None:
        for _ in range(count):
            if self.free == 0:
                del self.known[self.unused.pop(0)]
            table.blocks.append(Block(refs=1))

    def grow(self, seq, tokens) -> int | None:
        table = self.tables[seq]
        missing = max(0, -(-tokens // self.size) - len(table.blocks))
        if missing > self.free + len(self.unused):
            return None
        self.take(table, missing)
        return missing

    def fork(self, parent, child, tokens) -> None:
        source = self.tables[parent]
        full = tokens // self.size
        table = Table(source.salt, source.blocks[:full], source.names[:full])
        for block in table.blocks:
            block.refs += 1
        self.tables[child] = table

    def publish(self, seq, tokens, computed) -> None:
        table = self.tables[seq]
        if not self.caching:
            return
        for i in range(len(table.names), computed // self.size):
            name = (table.salt, tuple(tokens[: (i + 1) * self.size]))
            table.names.append(name)
            self.offer(table.blocks[i], name)

    def offer(self, block: Block, name: tuple) -> None:
        if block.name is None and name not in self.known:
            block.name = name
            self.known[name] = block

    def release(self, seq) -> None:
        """From the last block to the first, so that no prefix is left longer ago than its end."""
        table = self.tables.pop(seq, None)
        if table is None:
            return
        for i in reversed(range(len(table.blocks))):
            block = table.blocks[i]
            if i < len(table.names):
                name = table.names[i]
                self.offer(block, name)  # whoever published it first may have lost it since
                if name in self.unused:
                    self.unused.remove(name)
                    self.unused.append(name)  # this sequence used it too, as its own copy
            block.refs -= 1
            if block.refs == 0 and block.name is not None:
                self.unused.append(block.name)

    def reset(self) -> bool:
        if len(self.known) != len(self.unused):
            return False
        self.known.clear()
        self.unused.clear()
        return True
