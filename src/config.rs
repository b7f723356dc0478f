//! Options from text to types: `-o` words and their defaults. Knows no files.
