//! The seats of all levels and who waits for them. Pure bookkeeping: nothing here waits or tells the time.
//!
//! A level has its share of the server's seats, may lend a part of it and borrow what others lend. Who finds no seat waits
//! in one of the level's queues: the shortest of the few that its flow is dealt, so that a flow that fills its own queues
//! leaves room in most queues of others. Of the queues the one that has had least is served next.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::config::{Level, Queuing};

/// Names a waiting request.
pub(super) type Ticket = u64;

/// The seats.
#[derive(Default)]
pub(super) struct Seats {
    levels: HashMap<String, Room>,
    next_ticket: Ticket,
}

/// One level's.
struct Room {
    level: Level,
    nominal: u64,
    lendable: u64,
    borrowing_limit: u64,
    executing: u64,
    queues: Vec<Queue>,
}

#[derive(Clone, Default)]
struct Queue {
    waiting: VecDeque<Ticket>,
    /// How many of its requests have had a seat, as far as that counts.
    served: u64,
    executing: u64,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It has a seat (that of this queue).
    Seated(usize),
    /// It waits.
    Waits(Ticket),
    /// There is no room.
    Full(&'static str),
}

/// A request that gets a seat: the level, the queue, its ticket.
pub(super) type Called = (String, usize, Ticket);

impl Seats {
    /// Shares `total` seats out to these levels. Who is seated stays seated; who waits at a level that is no more or has
    /// other queues now is given back.
    pub fn share(&mut self, levels: &[Level], total: u64) -> Vec<Ticket> {
        let shares: u64 = levels.iter().map(|level| level.shares).sum::<u64>().max(1);
        let mut old = std::mem::take(&mut self.levels);
        let mut homeless = Vec::new();
        for level in levels {
            let nominal = (total * level.shares).div_ceil(shares);
            let count = level.queuing.as_ref().map_or(1, |queuing| queuing.queues.max(1));
            let mut room = Room {
                nominal,
                lendable: nominal * level.lendable_percent / 100,
                borrowing_limit: level.borrowing_limit_percent.map_or(total, |percent| nominal * percent / 100),
                executing: 0,
                queues: vec![Queue::default(); count],
                level: level.clone(),
            };
            if let Some(before) = old.remove(&level.name) {
                room.executing = before.executing;
                if before.queues.len() == count {
                    room.queues = before.queues;
                } else {
                    homeless.extend(before.queues.into_iter().flat_map(|queue| queue.waiting));
                }
            }
            self.levels.insert(level.name.clone(), room);
        }
        homeless.extend(old.into_values().flat_map(|room| room.queues).flat_map(|queue| queue.waiting));
        homeless
    }

    /// A request of a flow comes to a level.
    pub fn enter(&mut self, level: &str, schema: &str, flow: &str) -> Entry {
        let Some(room) = self.levels.get(level) else { return Entry::Seated(0) };
        if room.level.exempt {
            self.levels.get_mut(level).expect("just seen").executing += 1;
            return Entry::Seated(0);
        }
        let queuing = room.level.queuing.clone();
        let queue = queuing.as_ref().map_or(0, |queuing| room.choose(queuing, schema, flow));
        // Nobody overtakes those who wait.
        let waits = room.queues.iter().any(|queue| !queue.waiting.is_empty());
        if !waits && self.has_seat(level) {
            self.seat(level, queue);
            return Entry::Seated(queue);
        }
        let Some(queuing) = queuing else { return Entry::Full("concurrency-limit") };
        let room = self.levels.get_mut(level).expect("just seen");
        if room.queues[queue].waiting.len() >= queuing.queue_length_limit {
            return Entry::Full("queue-full");
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if room.queues[queue].waiting.is_empty() {
            // Whoever was away is not owed what it didn't ask for.
            let least = room.queues.iter().filter(|queue| !queue.waiting.is_empty()).map(|queue| queue.served).min();
            let served = &mut room.queues[queue].served;
            *served = (*served).max(least.unwrap_or(*served));
        }
        room.queues[queue].waiting.push_back(ticket);
        Entry::Waits(ticket)
    }

    /// A request leaves its seat. Who gets one now?
    pub fn leave(&mut self, level: &str, queue: usize) -> Vec<Called> {
        if let Some(room) = self.levels.get_mut(level) {
            room.executing = room.executing.saturating_sub(1);
            if let Some(queue) = room.queues.get_mut(queue) {
                queue.executing = queue.executing.saturating_sub(1);
            }
        }
        self.call()
    }

    /// A request waits no longer.
    pub fn give_up(&mut self, level: &str, ticket: Ticket) {
        let Some(room) = self.levels.get_mut(level) else { return };
        for queue in &mut room.queues {
            queue.waiting.retain(|waiting| *waiting != ticket);
        }
    }

    /// Seats those who wait, as far as there is room.
    pub fn call(&mut self) -> Vec<Called> {
        let mut called = Vec::new();
        let names: Vec<String> = self.levels.keys().cloned().collect();
        for name in names {
            while self.has_seat(&name)
                && let Some(room) = self.levels.get_mut(&name)
                && let Some((index, _)) = room
                    .queues
                    .iter()
                    .enumerate()
                    .filter(|(_, queue)| !queue.waiting.is_empty())
                    .min_by_key(|(_, queue)| (queue.served, queue.executing))
                && let Some(ticket) = room.queues[index].waiting.pop_front()
            {
                self.seat(&name, index);
                called.push((name.clone(), index, ticket));
            }
        }
        called
    }

    fn seat(&mut self, level: &str, queue: usize) {
        if let Some(room) = self.levels.get_mut(level) {
            room.executing += 1;
            room.queues[queue].served += 1;
            room.queues[queue].executing += 1;
        }
    }

    /// Whether a level has a seat of its own left, or others lend one.
    fn has_seat(&self, level: &str) -> bool {
        let Some(room) = self.levels.get(level) else { return true };
        if room.executing < room.nominal {
            return true;
        }
        let borrowed = room.executing - room.nominal;
        if borrowed >= room.borrowing_limit {
            return false;
        }
        let others = self.levels.values().filter(|other| !other.level.exempt);
        let (mut lent, mut taken) = (0, 0);
        for other in others {
            lent += other.lendable.min(other.nominal.saturating_sub(other.executing));
            taken += other.executing.saturating_sub(other.nominal);
        }
        taken < lent
    }

    /// How many of a level have seats, and how many wait.
    pub fn occupancy(&self, level: &str) -> (u64, usize) {
        let Some(room) = self.levels.get(level) else { return (0, 0) };
        (room.executing, room.queues.iter().map(|queue| queue.waiting.len()).sum())
    }
}

impl Room {
    /// The shortest of the queues that a flow is dealt.
    fn choose(&self, queuing: &Queuing, schema: &str, flow: &str) -> usize {
        let hand = deal(queuing, schema, flow);
        let load = |index: &usize| {
            let queue = &self.queues[*index];
            (queue.waiting.len() as u64 + queue.executing, queue.served)
        };
        hand.into_iter().min_by_key(load).unwrap_or(0)
    }
}

/// Which queues a flow may use: always the same few, different for different flows.
fn deal(queuing: &Queuing, schema: &str, flow: &str) -> Vec<usize> {
    let count = queuing.queues.max(1);
    let mut hasher = DefaultHasher::new();
    (schema, flow).hash(&mut hasher);
    let mut entropy = hasher.finish();
    let mut deck: Vec<usize> = (0..count).collect();
    let mut hand = Vec::new();
    for _ in 0..queuing.hand_size.clamp(1, count) {
        let left = deck.len() as u64;
        // As many cards as there can be are drawn from one number, so that hands differ in all of them.
        let card = usize::try_from(entropy % left).unwrap_or(0);
        entropy /= left;
        hand.push(deck.swap_remove(card));
    }
    hand
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(name: &str, shares: u64, lendable_percent: u64, queues: usize) -> Level {
        Level {
            name: name.to_owned(),
            uid: String::new(),
            exempt: false,
            shares,
            lendable_percent,
            borrowing_limit_percent: None,
            queuing: (queues > 0).then_some(Queuing { queues, hand_size: 2, queue_length_limit: 10 }),
        }
    }

    fn ticket(entry: Entry) -> Ticket {
        match entry {
            Entry::Waits(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_noisy_flow_fills_its_own_queues_and_another_comes_next() {
        let mut seats = Seats::default();
        seats.share(&[level("a", 1, 0, 64)], 2);
        for _ in 0..2 {
            assert!(matches!(seats.enter("a", "s", "noisy"), Entry::Seated(_)));
        }
        let mut refused = 0;
        for _ in 0..100 {
            if let Entry::Full(why) = seats.enter("a", "s", "noisy") {
                assert_eq!(why, "queue-full");
                refused += 1;
            }
        }
        assert_eq!(refused, 80, "two queues of ten");
        let quiet = ticket(seats.enter("a", "s", "quiet"));
        // It gets one of the next few seats, although twenty were there before.
        let mut before = 0;
        loop {
            let called = seats.leave("a", 0);
            assert_eq!(called.len(), 1);
            if called[0].2 == quiet {
                break;
            }
            before += 1;
        }
        assert!(before <= 2, "{before} of the noisy ones came first");
    }

    #[test]
    fn a_level_lends_what_it_does_not_need_and_gets_it_back() {
        let mut seats = Seats::default();
        seats.share(&[level("busy", 1, 0, 8), level("idle", 1, 50, 8)], 8);
        let mut queues = Vec::new();
        for _ in 0..6 {
            match seats.enter("busy", "s", "f") {
                Entry::Seated(queue) => queues.push(queue),
                other => panic!("{other:?}"),
            }
        }
        ticket(seats.enter("busy", "s", "f"));
        // The lender always gets what is its own.
        for _ in 0..4 {
            assert!(matches!(seats.enter("idle", "s", "g"), Entry::Seated(_)));
        }
        assert_eq!(seats.leave("busy", queues[0]), [], "what was borrowed goes back first");
    }

    #[test]
    fn without_queues_what_finds_no_seat_is_refused() {
        let mut seats = Seats::default();
        seats.share(&[level("a", 1, 0, 0)], 1);
        assert_eq!(seats.enter("a", "s", "f"), Entry::Seated(0));
        assert_eq!(seats.enter("a", "s", "f"), Entry::Full("concurrency-limit"));
        seats.leave("a", 0);
        assert_eq!(seats.enter("a", "s", "f"), Entry::Seated(0));
    }

    #[test]
    fn whoever_gives_up_is_not_called_and_other_queues_send_everybody_away() {
        let mut seats = Seats::default();
        seats.share(&[level("a", 1, 0, 8)], 1);
        seats.enter("a", "s", "f");
        let first = ticket(seats.enter("a", "s", "f"));
        let second = ticket(seats.enter("a", "s", "f"));
        seats.give_up("a", first);
        assert_eq!(seats.leave("a", 0).iter().map(|called| called.2).collect::<Vec<_>>(), [second]);
        let third = ticket(seats.enter("a", "s", "f"));
        assert_eq!(seats.share(&[level("a", 1, 0, 16)], 1), [third]);
    }
}
