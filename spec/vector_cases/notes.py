"""The flags of vectors: what kind of mistake each finds, and what the mistake would cost."""

from __future__ import annotations

from typing import Final

# flag: (bugType, description, effect)
NOTES: Final[dict[str, tuple[str, str, str]]] = {
    "Basic": (
        "BASIC",
        "An ordinary value; every field has bytes of its own, so that a wrong offset, width or order shows.",
        "Without these an implementation cannot speak to another one.",
    ),
    "Boundary": (
        "EDGE_CASE",
        "The smallest or the largest number of a field, or an empty or a full list.",
        "Signed or too narrow integers, and bounds off by one, refuse a legal peer.",
    ),
    "Limit": (
        "DENIAL_OF_SERVICE",
        "One more than what was announced or what the specification bounds.",
        "A peer makes its receiver allocate or compute without bound.",
    ),
    "Truncated": (
        "MEMORY_SAFETY",
        "A body, frame or preface that ends too early.",
        "Reads beyond a buffer; a cut stream taken for a whole one.",
    ),
    "Trailing": (
        "MISSING_CHECK",
        "Bytes behind the last field, or bits behind the last bit.",
        "Two implementations read the same bytes differently; a way to carry data unseen.",
    ),
    "Reserved": (
        "MISSING_CHECK",
        "A reserved field that is not zero.",
        "The field can never be given a meaning, because somebody sends garbage in it.",
    ),
    "ClosedEnum": (
        "MISSING_CHECK",
        "A number that a closed enumeration does not have.",
        "A value that nobody defined is taken for one of the defined ones.",
    ),
    "OpenEnum": (
        "EDGE_CASE",
        "A number that an open enumeration does not have: it is well-formed.",
        "Every new error code, feature or limit would break old receivers.",
    ),
    "Bool": (
        "MISSING_CHECK",
        "A boolean with another bit than the lowest.",
        "One side reads true where the other reads false.",
    ),
    "Text": (
        "MISSING_CHECK",
        "Text that is not UTF-8, or has control characters.",
        "Logs and terminals are written to by a peer; a NUL cuts a name, an overlong form hides one.",
    ),
    "Count": (
        "DENIAL_OF_SERVICE",
        "A count beyond what the rest of the body can hold.",
        "Memory is allocated for items that never come.",
    ),
    "Duplicate": (
        "MISSING_CHECK",
        "Something twice that may be there once.",
        "The first or the last one counts, as each implementation likes it.",
    ),
    "CrossField": (
        "MISSING_CHECK",
        "Fields that are right each on its own and contradict each other.",
        "An impossible state is entered.",
    ),
    "Region": (
        "MEMORY_SAFETY",
        "Region tables that overlap, wrap or are not aligned; pages outside of their region.",
        "Writes outside of the guest's memory.",
    ),
    "Runs": (
        "MEMORY_SAFETY",
        "Runs that are empty, wrap, overlap or are out of order.",
        "Pages are written twice or in the wrong place, and counted wrong.",
    ),
    "Bitmap": (
        "MEMORY_SAFETY",
        "Bitmaps whose length, bits and runs disagree.",
        "Pages that were never meant are taken as held or stale.",
    ),
    "Fragment": (
        "MEMORY_SAFETY",
        "Fragments that leave their section, or end it wrongly.",
        "Writes beyond a section's buffer; state that is loaded before it is whole.",
    ),
    "Checksum": (
        "MISSING_CHECK",
        "A checksum that is not that of the bytes.",
        "Damage is believed.",
    ),
    "Sequence": (
        "MISSING_CHECK",
        "Frames lost, repeated or out of order.",
        "A lost batch of pages stays unnoticed.",
    ),
    "Unknown": (
        "INTEROP",
        "Frames of unknown type.",
        "The protocol can not be extended, or a required extension is ignored.",
    ),
    "Order": (
        "INTEROP",
        "Several things are wrong; the order of checks says which one is named.",
        "Two receivers name different codes for the same bytes, and reports of failures mean nothing.",
    ),
    "Preface": (
        "INTEROP",
        "The first bytes of another protocol, or of a damaged stream.",
        "An operator sees a timeout instead of the reason.",
    ),
    "Version": (
        "INTEROP",
        "What must be understood whatever version the peer speaks.",
        "A newer peer is called broken instead of newer.",
    ),
    "Handshake": (
        "DENIAL_OF_SERVICE",
        "Bounds that hold before limits were announced.",
        "A peer that nobody knows yet makes its receiver allocate.",
    ),
    "NotSelected": (
        "MISSING_CHECK",
        "Use of what was not selected.",
        "Code that nobody agreed to use is reached by a peer.",
    ),
    "OptionalFeature": (
        "INTEROP",
        "A frame of a feature that an implementation may lack; for those who have it.",
        "None for an implementation that answers its use as NEG-7 says.",
    ),
    "PageHash": (
        "MISSING_CHECK",
        "A hash that is not that of its chunk.",
        "The guest runs on damaged memory.",
    ),
    "ReservedFeature": (
        "INTEROP",
        "A frame or an encoding that is specified and need not be implemented; for those who do.",
        "None for an implementation that answers its use as CON-5 says.",
    ),
}
