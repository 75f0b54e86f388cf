//! The cost of a statement, from `explain (analyze, buffers, format json)`.

use serde_json::Value;

/// The measured cost of one statement.
#[derive(Debug)]
pub(super) struct Cost {
    /// Rows and index entries that the scans visited, whether or not they passed the filters.
    pub(super) rows: u64,
    /// Buffer hits and reads, of tables, indexes and temporary files.
    pub(super) buffers: u64,
    /// Time of planning and execution in milliseconds.
    pub(super) millis: f64,
    /// The node types of the plan, such as `Index Scan using orders_pkey`, outermost first.
    pub(super) nodes: Vec<String>,
}

impl Cost {
    /// Parses the output of `explain (analyze, buffers, format json)`.
    pub(super) fn read(explained: &Value) -> Self {
        let root = &explained[0];
        let plan = &root["Plan"];
        let buffers = ["Shared Hit Blocks", "Shared Read Blocks", "Temp Read Blocks", "Temp Written Blocks"];
        let millis = |name: &str| root[name].as_f64().unwrap_or_default();
        let mut cost = Self {
            rows: 0,
            buffers: buffers.iter().map(|name| whole(&plan[*name])).sum(),
            millis: millis("Planning Time") + millis("Execution Time"),
            nodes: Vec::new(),
        };
        cost.visit(plan);
        cost
    }

    /// Whether the plan scans or sorts a whole table.
    pub(super) fn scans_or_sorts(&self) -> bool {
        self.nodes.iter().any(|node| node.starts_with("Seq Scan") || node.contains("Sort"))
    }

    fn visit(&mut self, node: &Value) {
        let kind = node["Node Type"].as_str().unwrap_or_default();
        let index = node["Index Name"].as_str().map(|name| format!(" using {name}")).unwrap_or_default();
        self.nodes.push(format!("{kind}{index}"));
        // The heap scan above a bitmap counts the same rows again.
        if kind.contains("Scan")
            && !["Bitmap Heap Scan", "Subquery Scan", "CTE Scan", "Function Scan"].contains(&kind)
        {
            let loops = whole(&node["Actual Loops"]);
            let read = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"];
            self.rows += loops * read.iter().map(|name| whole(&node[*name])).sum::<u64>();
        }
        for child in node["Plans"].as_array().into_iter().flatten() {
            self.visit(child);
        }
    }
}

/// PostgreSQL 18 writes row counts with decimals, because they are averages over the loops.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
fn whole(count: &Value) -> u64 {
    count.as_f64().unwrap_or_default().ceil() as u64
}
