//! Accesses to pages as the five transactions of TPC-C make them.
//!
//! Tables are clustered by their keys, with TPC-C's rows (clause 1.3) in pages of 16 KiB, and B+trees of two
//! levels above them. The mix, the numbers of rows and the skew (NURand, clause 2.1.6) are those of the
//! benchmark; order lines of an order stay together. What a database caches by itself, and its log,
//! are left out.

use std::collections::VecDeque;

use super::Access;
use crate::bench::rng::Rng;

const PAGE: u64 = 16 << 10;
const DISTRICTS: u64 = 10;
const CUSTOMERS: u64 = 3000;
const ITEMS: u64 = 100_000;
/// Orders of a district at the start, one for each customer; the last 900 are not delivered.
const FIRST_ORDERS: u64 = 3000;
const UNDELIVERED: u64 = 900;
/// Orders that Stock-Level looks at.
const RECENT: usize = 20;
/// Orders whose pages do not meet those of the next district.
const ORDER_SPACE: u64 = 1 << 32;
/// Children of an inner node.
const FAN_OUT: u64 = 500;
/// Pages of a warehouse: customers, stock, orders.
const WAREHOUSE_PAGES: usize = 4300;

/// A table: number of its file, bytes of a row.
#[derive(Clone, Copy)]
struct Table(u64, u64);

const ITEM: Table = Table(11, 82);
const STOCK: Table = Table(12, 306);
const CUSTOMER: Table = Table(13, 655);
const CUSTOMER_NAMES: Table = Table(14, 40);
const WAREHOUSE: Table = Table(15, 89);
const DISTRICT: Table = Table(16, 95);
const ORDER: Table = Table(17, 24);
const NEW_ORDER: Table = Table(18, 8);
const ORDER_LINE: Table = Table(19, 54);
const HISTORY: Table = Table(20, 46);
/// File of a table's inner nodes, from the number of its own.
const INNER: u64 = 100;

/// Lines that an order has room for.
const LINES: u64 = 15;

#[derive(Clone, Debug)]
struct Order {
    customer: u64,
    items: Vec<u64>,
}

#[derive(Clone, Debug)]
struct District {
    next_order: u64,
    next_delivery: u64,
    /// The last orders.
    recent: VecDeque<Order>,
}

/// See the module.
#[derive(Debug)]
pub struct Tpcc {
    rng: Rng,
    warehouses: u64,
    districts: Vec<District>,
    payments: u64,
    queue: VecDeque<Access>,
}

impl Tpcc {
    /// A database of about four times `frames` pages.
    pub fn new(frames: usize, rng: Rng) -> Self {
        let warehouses = (4 * frames / WAREHOUSE_PAGES).max(1) as u64;
        let district = District {
            next_order: FIRST_ORDERS,
            next_delivery: FIRST_ORDERS - UNDELIVERED,
            recent: VecDeque::new(),
        };
        let districts = vec![district; (warehouses * DISTRICTS) as usize];
        Self { rng, warehouses, districts, payments: 0, queue: VecDeque::new() }
    }

    /// Skewed numbers from 0 to `n - 1`; `a` is a power of two less 1.
    fn skewed(&mut self, a: u64, n: u64) -> u64 {
        const C: u64 = 123;
        ((self.rng.below(a + 1) | self.rng.below(n)) + C) % n
    }

    /// Touches the row's page, and the inner nodes above it.
    fn row(&mut self, table: Table, row: u64) {
        let page = row / (PAGE / table.1);
        let access = |file, page| Access { file, page, scan: false };
        self.queue.extend([
            access(table.0 + INNER, 0),
            access(table.0 + INNER, 1 + page / FAN_OUT),
            access(table.0, page),
        ]);
    }

    /// Touches the pages of an order of a district.
    fn order(&mut self, district: u64, order: u64) {
        let row = district * ORDER_SPACE + order;
        self.row(ORDER, row);
        self.row(ORDER_LINE, row * LINES);
    }

    fn new_order(&mut self, warehouse: u64, district: u64) {
        let customer = self.skewed(1023, CUSTOMERS);
        self.row(WAREHOUSE, warehouse);
        self.row(DISTRICT, district);
        self.row(CUSTOMER, district * CUSTOMERS + customer);
        let lines = 5 + self.rng.below(11);
        let items: Vec<u64> = (0..lines).map(|_| self.skewed(8191, ITEMS)).collect();
        for item in &items {
            self.row(ITEM, *item);
            let remote = self.rng.below(100) == 0;
            let supplier = if remote { self.rng.below(self.warehouses) } else { warehouse };
            self.row(STOCK, supplier * ITEMS + item);
        }
        let d = &mut self.districts[district as usize];
        let order = d.next_order;
        d.next_order += 1;
        d.recent.push_back(Order { customer, items });
        if d.recent.len() > RECENT {
            d.recent.pop_front();
        }
        self.row(NEW_ORDER, district * ORDER_SPACE + order);
        self.order(district, order);
    }

    /// A customer, in 60 of 100 cases by name: those of that name are looked at.
    fn customer(&mut self, district: u64) -> u64 {
        if self.rng.below(100) >= 60 {
            let customer = self.skewed(1023, CUSTOMERS);
            self.row(CUSTOMER, district * CUSTOMERS + customer);
            return customer;
        }
        let name = self.skewed(255, CUSTOMERS / 3);
        self.row(CUSTOMER_NAMES, district * CUSTOMERS + name * 3);
        for same_name in [0, 1, 2] {
            self.row(CUSTOMER, district * CUSTOMERS + name + same_name * CUSTOMERS / 3);
        }
        name + CUSTOMERS / 3
    }

    fn payment(&mut self, warehouse: u64, district: u64) {
        self.row(WAREHOUSE, warehouse);
        self.row(DISTRICT, district);
        let remote = self.rng.below(100) >= 85;
        let of = if remote { self.rng.below(self.warehouses * DISTRICTS) } else { district };
        self.customer(of);
        self.payments += 1;
        self.row(HISTORY, self.payments);
    }

    fn order_status(&mut self, district: u64) {
        let customer = self.customer(district);
        let d = &self.districts[district as usize];
        let recent = d.recent.iter().rev().position(|o| o.customer == customer);
        // Else it is an old one.
        let order = recent.map_or(customer, |back| d.next_order - 1 - back as u64);
        self.order(district, order);
    }

    fn delivery(&mut self, warehouse: u64) {
        for district in warehouse * DISTRICTS..(warehouse + 1) * DISTRICTS {
            let d = &mut self.districts[district as usize];
            if d.next_delivery == d.next_order {
                continue;
            }
            let order = d.next_delivery;
            d.next_delivery += 1;
            self.row(NEW_ORDER, district * ORDER_SPACE + order);
            self.order(district, order);
            let customer = self.rng.below(CUSTOMERS);
            self.row(CUSTOMER, district * CUSTOMERS + customer);
        }
    }

    fn stock_level(&mut self, warehouse: u64, district: u64) {
        self.row(DISTRICT, district);
        let d = &self.districts[district as usize];
        let first = d.next_order - d.recent.len() as u64;
        let items: Vec<Vec<u64>> = d.recent.iter().map(|o| o.items.clone()).collect();
        for (i, items) in items.into_iter().enumerate() {
            self.row(ORDER_LINE, (district * ORDER_SPACE + first + i as u64) * LINES);
            items.into_iter().for_each(|item| self.row(STOCK, warehouse * ITEMS + item));
        }
    }

    fn transaction(&mut self) {
        let warehouse = self.rng.below(self.warehouses);
        let district = warehouse * DISTRICTS + self.rng.below(DISTRICTS);
        match self.rng.below(100) {
            0..45 => self.new_order(warehouse, district),
            45..88 => self.payment(warehouse, district),
            88..92 => self.order_status(district),
            92..96 => self.delivery(warehouse),
            _ => self.stock_level(warehouse, district),
        }
    }
}

impl Iterator for Tpcc {
    type Item = Access;

    fn next(&mut self) -> Option<Access> {
        while self.queue.is_empty() {
            self.transaction();
        }
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn every_table_is_used_and_rows_stay_in_their_tables() {
        let mut files: HashMap<u64, u64> = HashMap::new();
        let mut pages = HashMap::new();
        for access in Tpcc::new(4096, Rng::new(1)).take(400_000) {
            *files.entry(access.file).or_default() += 1;
            *pages.entry((access.file, access.page)).or_insert(0u64) += 1;
        }
        assert_eq!(files.len(), 20, "{files:?}");
        let warehouses = 4 * 4096 / WAREHOUSE_PAGES as u64;
        let highest = |t: Table| pages.keys().filter(|(f, _)| *f == t.0).map(|(_, p)| *p).max().unwrap();
        assert!(highest(ITEM) <= ITEMS / (PAGE / ITEM.1));
        assert!(highest(STOCK) <= warehouses * ITEMS / (PAGE / STOCK.1));
        assert!(highest(CUSTOMER) <= warehouses * DISTRICTS * CUSTOMERS / (PAGE / CUSTOMER.1));
        // Some pages are hot, and most are not.
        assert!(*pages.values().max().unwrap() > 10_000);
        assert!(pages.values().filter(|n| **n < 10).count() > pages.len() / 3);
    }
}
