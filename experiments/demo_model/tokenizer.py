"""The tokenizer: whole words where the world has them, syllables, letters and bytes elsewhere.

It is a byte-level BPE, so any text is encoded without loss and nothing is ever unknown. Words of
the vocabulary are taken whole (`ignore_merges`); the merges only join letters to syllables.

Every piece of text between special tokens gets one space in front, and decoding drops it again
(as Llama's own tokenizer does). So a word is the same token at the start of an answer as in the
middle of a fact, and an answer that is sent back as history encodes to the tokens generated.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from experiments.demo_model import chat, words

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = [PAD, BOS, SYSTEM, USER, ASSISTANT, END]
PAD_ID, BOS_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID, END_ID = range(len(SPECIAL))
ROLE_IDS = {"system": SYSTEM_ID, "user": USER_ID, "assistant": ASSISTANT_ID}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# One word with its space (an inner hyphen stays inside), an 's, one digit, one other character.
PIECES = r" ?\p{L}+(?:-\p{L}+)?|'(?:s|re|t|m|ll|ve|d)\b|\p{N}|[^\p{L}\p{N}]"

PHRASE_WORDS = (
    "the code room color colour of is for has have that does do you can could tell me my what "
    "which and recall remember note please still know about i need want give was again said "
    "told repeat after say these this words numbers what's let us now remind it in a also"
).split()


def _byte_symbols() -> dict[int, str]:
    """The printable stand-in of each byte in byte-level vocabularies (GPT-2's table)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in keep}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(keep))
    return table


def to_symbols(text: str) -> str:
    table = _byte_symbols()
    return "".join(table[byte] for byte in text.encode())


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """All tokens in order of their ids, and the merges, in byte symbols."""
    tokens: dict[str, None] = dict.fromkeys(SPECIAL)
    merges: list[tuple[str, str]] = []
    tokens.update(dict.fromkeys(_byte_symbols().values()))
    space = to_symbols(" ")

    def merge(left: str, right: str) -> None:
        tokens.setdefault(left + right)
        merges.append((left, right))

    syllables = [c + v for c in words.CONSONANTS for v in words.VOWELS]
    for syllable in syllables + [syllable.capitalize() for syllable in syllables]:
        merge(syllable[0], syllable[1])
    letters = "abcdefghijklmnopqrstuvwxyz"
    for start in syllables + [s.capitalize() for s in syllables] + list(letters + letters.upper()):
        merge(space, start)
    plain = (
        PHRASE_WORDS
        + words.MAIN_ATTRIBUTES
        + words.OTHER_ATTRIBUTES
        + words.COLORS
        + words.CITIES
        + words.PLAIN_WORDS
        + words.FILLER_WORDS
        + chat.chat_words()
    )
    for word in dict.fromkeys(plain):
        for form in (word, word.capitalize()):
            tokens.setdefault(to_symbols(" " + form))
            tokens.setdefault(to_symbols(form))
    for word in chat.chat_words():
        tokens.setdefault(to_symbols(" " + word.upper()))
    for name in words.NAMES:
        tokens.setdefault(to_symbols(" " + name))
        tokens.setdefault(to_symbols(name))
    for ending in ("'s", "'re", "'t", "'m", "'ll"):
        tokens.setdefault(ending)
    for number in range(-len(tokens) % 16):
        tokens.setdefault(f"<|reserved-{number}|>")
    return list(tokens), merges


def build_tokenizer() -> Tokenizer:
    tokens, merges = vocabulary()
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=True,
        )
    )
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer
