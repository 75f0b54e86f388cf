//! The fingerprint by which identical requests are recognised: SHA-256 of the merged lines. The order of the lines,
//! white space and ignored fields do not change it.

use sha2::{Digest, Sha256};

use crate::domain::RequestedLine;

pub(super) fn fingerprint(lines: &[(usize, RequestedLine)]) -> [u8; 32] {
    let mut lines: Vec<&RequestedLine> = lines.iter().map(|(_, line)| line).collect();
    lines.sort_unstable_by_key(|line| line.product_id.as_str());
    let mut hash = Sha256::new();
    for line in lines {
        // Product ids contain no space and quantities no letter, so the text is unambiguous.
        hash.update(line.product_id.as_str());
        hash.update(format!(" {}\n", line.quantity.get()));
    }
    hash.finalize().into()
}
