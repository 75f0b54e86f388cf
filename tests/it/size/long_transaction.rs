//! The relay beside a snapshot that stays open (issue 8, point 3).
