//! The products: some that never run out, and a stream of scarce ones.

use super::random::Random;
use super::world::World;

const PLENTIFUL: u64 = 8;
const PLENTY: i64 = 10_000_000;
/// The approximate number of stories that order each scarce product; together they order more than its stock.
const STORIES_A_SCARCE_PRODUCT: usize = 12;
const SCARCE: i64 = 9;

pub(super) struct Shelf {
    scarce: usize,
}

impl Shelf {
    /// Creates the products for about `stories` stories; further stories reuse the last scarce products.
    pub(super) async fn stock(world: &World, stories: usize) -> Self {
        let scarce = stories / STORIES_A_SCARCE_PRODUCT + 4;
        for number in 0..PLENTIFUL {
            world.make_product(&format!("plenty-{number}"), "19.90", PLENTY).await;
        }
        for number in 0..scarce {
            world.make_product(&format!("scarce-{number}"), "2499.10", SCARCE).await;
        }
        Self { scarce }
    }

    /// The basket of a story: one to three different products.
    pub(super) fn basket(&self, story: usize, random: &mut Random) -> Vec<(String, u32)> {
        let quantity = |random: &mut Random| u32::try_from(random.between(1, 3)).unwrap();
        let mut basket = Vec::new();
        for _ in 0..random.between(1, 3) {
            let product = if random.percent(40) {
                let newest = story / STORIES_A_SCARCE_PRODUCT + random.index(3);
                format!("scarce-{}", newest.min(self.scarce - 1))
            } else {
                format!("plenty-{}", random.below(PLENTIFUL))
            };
            if basket.iter().all(|(known, _)| *known != product) {
                basket.push((product, quantity(random)));
            }
        }
        basket
    }

    /// Whether the stock of a product exceeds the orders of all stories.
    pub(super) fn never_runs_out(product: &str) -> bool {
        product.starts_with("plenty")
    }

    /// The initial stock of a product.
    pub(super) fn stocked(product: &str) -> i64 {
        if Self::never_runs_out(product) { PLENTY } else { SCARCE }
    }
}
