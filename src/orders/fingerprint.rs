//! By what two requests are the same: their lines, after those of one product were added up. Their sequence,
//! white space and fields that are ignored make no difference.

use sha2::{Digest, Sha256};

use crate::domain::RequestedLine;

pub(super) fn fingerprint(lines: &[(usize, RequestedLine)]) -> [u8; 32] {
    let mut lines: Vec<&RequestedLine> = lines.iter().map(|(_, line)| line).collect();
    lines.sort_unstable_by_key(|line| line.product_id.as_str());
    let mut hash = Sha256::new();
    for line in lines {
        // A product id holds no space and a quantity no letter, so no two lists write the same text.
        hash.update(line.product_id.as_str());
        hash.update(format!(" {}\n", line.quantity.get()));
    }
    hash.finalize().into()
}
