"""The layouts of files that are understood; run as a script, it writes docs/file_layouts.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """One layout of a list of names.

    Attributes:
        title: what it is, for people.
        example: a file.
        suffix: its ending, where that matters.
        names: what is read.
        wnids: likewise, None where there are none.
        kinds: ``"adj"`` or ``"noun"`` per word; for lists of words only.
    """

    title: str
    example: str
    suffix: str = ".txt"
    names: tuple[str, ...] = ("tench", "goldfish")
    wnids: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None


_WNIDS = ("n01440764", "n01443537")
_SYNONYMS = ("tench, Tinca tinca", "goldfish, Carassius auratus")

CLASS_LAYOUTS = (
    Layout("one name per line", "tench\ngoldfish\n"),
    Layout("comments, either line ending", "# my classes\r\ntench\r\ngoldfish\r\n"),
    Layout("index and name", "0 tench\n1 goldfish\n"),
    Layout("index and name, from 1, in any order", "2. goldfish\n1. tench\n"),
    Layout("index: name", "0: tench\n1: goldfish\n"),
    Layout("index, tab, name", "0\ttench\n1\tgoldfish\n"),
    Layout("[index] name", "[0] tench\n[1] goldfish\n"),
    Layout("name and index", "tench 0\ngoldfish 1\n"),
    Layout("name,index", "goldfish,1\ntench,0\n"),
    Layout("wnids alone (ImageNet's names are put in)", "n01440764\nn01443537\n", wnids=_WNIDS),
    Layout("wnid,name", "n01440764,tench\nn01443537,goldfish\n", wnids=_WNIDS),
    Layout(
        "wnid name, with synonyms (synset_words.txt, LOC_synset_mapping.txt)",
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n",
        names=_SYNONYMS,
        wnids=_WNIDS,
    ),
    Layout(
        "wnid index name (map_clsloc.txt)", "n01443537 2 goldfish\nn01440764 1 tench\n", wnids=_WNIDS
    ),
    Layout("index,wnid,name", "0,n01440764,tench\n1,n01443537,goldfish\n", wnids=_WNIDS),
    Layout("index joined to the name", "001.tench\n002.goldfish\n"),
    Layout("index, and index joined to the name (CUB's classes.txt)", "1 001.tench\n2 002.goldfish\n"),
    Layout("wnid joined to the name", "n01440764-tench\nn01443537-goldfish\n", wnids=_WNIDS),
    Layout(
        "Places365 (categories_places365.txt)",
        "/a/aqueduct 0\n/a/apartment_building/outdoor 1\n",
        names=("aqueduct", "apartment building outdoor"),
    ),
    Layout("list items", "- tench\n- goldfish\n"),
    Layout("quoted names with commas", '"tench",\n"goldfish",\n'),
    Layout("Python dict, over several lines", "{0: 'tench',\n 1: 'goldfish'}\n"),
    Layout("its lines alone", "0: 'tench',\n1: 'goldfish',\n"),
    Layout("Python list, with a name", "classes = ['tench', 'goldfish']\n"),
    Layout(
        "CSV with a header",
        'id,wnid,name\n1,n01443537,"goldfish, gold"\n0,n01440764,tench\n',
        ".csv",
        names=("tench", "goldfish, gold"),
        wnids=_WNIDS,
    ),
    Layout("CSV with one column", "class\ntench\ngoldfish\n", ".csv"),
    Layout("semicolons", "label;class_name\n0;tench\n1;goldfish\n", ".csv"),
    Layout("TSV with a header", "index\tclass\n0\ttench\n1\tgoldfish\n", ".tsv"),
    Layout("JSON list", '["tench", "goldfish"]', ".json"),
    Layout("JSON, index to name", '{"1": "goldfish", "0": "tench"}', ".json"),
    Layout(
        "JSON, index to wnid and name (imagenet_class_index.json)",
        '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
        ".json",
        wnids=_WNIDS,
    ),
    Layout(
        "JSON, wnid to name", '{"n01440764": "tench", "n01443537": "goldfish"}', ".json", wnids=_WNIDS
    ),
    Layout("JSON, name to index (class_to_idx)", '{"goldfish": 1, "tench": 0}', ".json"),
    Layout(
        "JSON, list of objects", '[{"id": 1, "name": "tench"}, {"id": 2, "name": "goldfish"}]', ".json"
    ),
    Layout(
        "JSON, objects under a key (COCO's categories, a model's id2label)",
        '{"info": {}, "categories": [{"id": 1, "name": "tench"}, {"id": 2, "name": "goldfish"}]}',
        ".json",
    ),
)

_WORDS = ("ashtray", "beach wagon")
_MIXED = ("red", "beach wagon")
_ADJ_NOUN = ("adj", "noun")

WORD_LAYOUTS = (
    Layout(
        "one word per line", "# my words\nashtray\n\nbeach_wagon\n", names=("ashtray", "beach_wagon")
    ),
    Layout("CSV with a header", "word,score\nashtray,0.12\nbeach wagon,0.2\n", ".csv", names=_WORDS),
    Layout("word,score", "ashtray,0.12\nbeach wagon,0.2\n", names=_WORDS),
    Layout("word, tab, count", "ashtray\t12\nbeach wagon\t7\n", names=_WORDS),
    Layout("score,word", "0.12,ashtray\n0.2,beach wagon\n", names=_WORDS),
    Layout("word and score", "ashtray 0.12\nbeach wagon 0.20\n", names=_WORDS),
    Layout("index and word", "0: ashtray\n1: beach wagon\n", names=_WORDS),
    Layout(
        "wnid and word",
        "n02747177 ashtray\nn02814533 beach wagon\n",
        names=_WORDS,
        wnids=("n02747177", "n02814533"),
    ),
    Layout(
        "kind and word: this package's list, with or without its header",
        "adj red\nnoun beach wagon\n",
        names=_MIXED,
        kinds=_ADJ_NOUN,
    ),
    Layout("word,kind", "word,pos\nred,a\nbeach wagon,n\n", ".csv", names=_MIXED, kinds=_ADJ_NOUN),
    Layout("JSON list, on one line", '["ashtray", "beach wagon"]', ".json", names=_WORDS),
    Layout("JSON list in a text file", '["ashtray", "beach wagon"]\n', names=_WORDS),
    Layout("JSON, word to score", '{"ashtray": 0.12, "beach wagon": 0.2}', ".json", names=_WORDS),
    Layout(
        "JSON, lists by kind",
        '{"adjectives": ["red"], "nouns": ["beach wagon"]}',
        ".json",
        names=_MIXED,
        kinds=_ADJ_NOUN,
    ),
)


# other files: (layout, what it holds, what is read); test_file_layouts.py has a test of each
FURTHER = {
    "Image lists and folders": (
        ("path and label", r"cat/1.png 0\na dog/2.jpg 12\nc.png -1", "0, 12, and OOD"),
        ("path, tab, label", r"cat/1.png\t0\ndog/2.jpg\t1", "0, 1"),
        ("byte order mark, Windows line ends, blank lines",
         r"cat/1.png 0\r\n\r\ndog/2.jpg 1\r\n", "0, 1"),
        ("folder of class folders", "cat/1.png, dog/deep/2.jpg", "labels by the folders' names"),
        ("folder of numbers", "0/1.png, 1/2.jpg", "labels that the folders are called"),
        ("folder of numbered names", "001.cat/1.png, 002.dog/2.jpg", "the names without the numbers"),
        ("folder of wnids and names", "n01440764-tench/1.png, n01443537-goldfish/2.jpg", "the names"),
        ("folder of wnids", "n01440764/1.png, n01443537/2.jpg", "ImageNet's names, in their order"),
        ("folder without labels (OOD sets)", "1.png, deep/2.jpg", "every image below it"),
        ("image", "1.png", "one image without a label"),
    ),
    "Features": (
        ("npz", "text_features, n_id, id_features, id_labels, near/NAME, far/NAME", "a whole benchmark"),
        ("folder of npz", "text.npz, id.npz, near/NAME.npz, far/NAME.npz", "a whole benchmark"),
        ("folder of npy", "text_features.npy, n_id.npy, id_features.npy, id_labels.npy, far/NAME.npy",
         "a whole benchmark"),
        ("folder of safetensors", "text.safetensors, id.safetensors, far/NAME.safetensors",
         "a whole benchmark"),
    ),
    "Text features (`text_features`)": (
        ("npz with names", "text_features, n_id, names, logit_scale", "rows, names and scale"),
        ("safetensors", "text_features, n_id", "rows"),
        ("torch, a tensor", "a tensor (C + M, D)", "rows; C is the number of classes"),
        ("torch, a dictionary", "text_features, n_id, logit_scale", "rows and scale"),
    ),
    "Learned prompts (`learned_prompts`; .pt, .pth, .pth.tar, .safetensors)": (
        ("CoOp", "state_dict with ctx (n, w)", "one context for every class"),
        ("CoOp, of each class", "state_dict with ctx (C, n, w)", "a context for each class"),
        ("prefixes", "prompt_learner.ctx, module.prompt_learner.ctx", "the same"),
        ("NegPrompt", "ctx_positive (n, w), ctx_negative (K, n, w)", "K negative prompts per class"),
        ("LAPT", "ctx (n, w), ctx_neg (n, w)", "a context for classes, and one for mined labels"),
        ("whole OOD prompts", "ctx (n, w), ood_ctx (K, n + 1, w)", "K rows"),
        ("a trainer's own values", "optimizer, scheduler, epoch, metrics", "left unread"),
    ),
}  # fmt: skip


def as_markdown() -> str:
    """The tables of docs/file_layouts.md."""
    parts = []
    for title, layouts in (("Class names", CLASS_LAYOUTS), ("Words and negative labels", WORD_LAYOUTS)):
        rows = []
        for layout in layouts:
            example = repr(layout.example.strip("\r\n"))[1:-1].replace("|", "\\|")
            read = layout.kinds or layout.wnids or ("",) * len(layout.names)
            told = ", ".join(f"{beside} {name}".strip() for beside, name in zip(read, layout.names))
            ending = "" if layout.suffix == ".txt" else f" ({layout.suffix})"
            rows.append((layout.title + ending, f"`` {example} ``", told))
        parts += _table(title, "example", rows)
    for title, further in FURTHER.items():
        rows = [(name, f"`` {content} ``", read) for name, content, read in further]
        parts += _table(title, "what it holds", rows)
    return "\n".join(parts)


def _table(title: str, second: str, rows: list[tuple[str, str, str]]) -> list[str]:
    head = [f"## {title}", "", f"| layout | {second} | read as |", "| --- | --- | --- |"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows), ""]


HEAD = """# Files that are understood

Class names (`classes`, `--classes`) and words (`negatives`, `corpus`) may come in the layouts that are
common in public repositories. `\\n` is a line's end, `\\t` a tab. Text is UTF-8, or UTF-16 with its
mark. Row i is label i. If a file has numbers, they give the order, from 0 or from 1. Lines that begin
with `#` or `//` are comments.

Any other list is refused with its line: what looks like a column, a number, a header, a comment or
markup never becomes a name. Put names that must look like that into a JSON list. A file of adjectives is
recognised by its name (`adj.all.txt`, `wordnet_adjs.txt`), or by `adj` before each word.

Images, features and learned prompts follow below. What is not understood there is refused with the line
or the key that is wrong. Nothing in a file is run: pickled objects other than tensors are never loaded.

"""

if __name__ == "__main__":
    page = Path(__file__).parents[2] / "docs" / "file_layouts.md"
    page.write_text(HEAD + as_markdown(), "utf-8")
