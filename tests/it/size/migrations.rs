//! Migrations beside open readers and writers (issue 8, point 8).
