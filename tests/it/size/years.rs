//! Placing, reading and confirming in tables that are years old (issue 8, point 12).
