//! Times of day in which moves may begin.
//!
//! Owns what `22:00-06:00` means on a clock with or without summer time. Reads no clock: functions of a moment.

use jiff::{Span, Zoned, civil::Time};
use std::{fmt, str::FromStr};

/// From a time of day to a later one, or to one on the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: Time,
    /// Not later than `from`: on the next day.
    to: Time,
}

/// Why a text is not a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// It is not two times of day.
    #[error("a window is two times of day, as in 22:00-06:00")]
    Form,
    /// It ends when it begins.
    #[error("a window that ends when it begins is empty; without a window, moves begin at any time")]
    Empty,
}

/// Whether moves may begin, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// They may.
    Open {
        /// When the window closes, with those that follow without a gap. Ask again then: in windows all around the clock
        /// another follows.
        until: Zoned,
    },
    /// They may not.
    Shut {
        /// When the next window begins.
        until: Zoned,
    },
}

impl FromStr for Window {
    type Err = WindowError;
    fn from_str(text: &str) -> Result<Self, WindowError> {
        let (from, to) = text.split_once('-').ok_or(WindowError::Form)?;
        let (from, to) = (time(from)?, if to == "24:00" { Time::midnight() } else { time(to)? });
        if from == to { Err(WindowError::Empty) } else { Ok(Self { from, to }) }
    }
}

fn time(text: &str) -> Result<Time, WindowError> {
    let number = |digits: &str| match digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()) {
        true => digits.parse::<i8>().map_err(|_| WindowError::Form),
        false => Err(WindowError::Form),
    };
    let (hour, minute) = text.split_once(':').ok_or(WindowError::Form)?;
    Time::new(number(hour)?, number(minute)?, 0, 0).map_err(|_| WindowError::Form)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from.strftime("%H:%M"), self.to.strftime("%H:%M"))
    }
}

/// Whether a moment is in one of the windows, in its time zone; none when there is no window.
///
/// A time that the clock skips in spring counts as the one that is as much later, and a time that it shows twice in autumn as
/// the first of the two.
pub fn at(windows: &[Window], now: &Zoned) -> Option<Moment> {
    let mut spans: Vec<(Zoned, Zoned)> = windows
        .iter()
        .flat_map(|w| (-1..=1).filter_map(|days| w.on(now, days)))
        .filter(|(from, to)| from < to)
        .collect();
    spans.sort();
    let inside = |moment: &Zoned| {
        spans.iter().filter(|(from, to)| from <= moment && moment < to).map(|(_, to)| to).max().cloned()
    };
    if let Some(mut until) = inside(now) {
        while let Some(later) = inside(&until) {
            until = later;
        }
        return Some(Moment::Open { until });
    }
    // Windows are daily, so one begins today or tomorrow.
    spans.into_iter().map(|(from, _)| from).find(|from| from > now).map(|until| Moment::Shut { until })
}

impl Window {
    /// The window that begins so many days after the day of `now`. None at the end of the calendar.
    fn on(&self, now: &Zoned, days: i32) -> Option<(Zoned, Zoned)> {
        let first = now.date().checked_add(Span::new().days(days)).ok()?;
        let last = if self.to <= self.from { first.tomorrow().ok()? } else { first };
        let zone = now.time_zone();
        let at = |date: jiff::civil::Date, time: Time| date.to_datetime(time).to_zoned(zone.clone()).ok();
        Some((at(first, self.from)?, at(last, self.to)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }
    /// "open until …", "shut until …".
    fn says(texts: &[&str], now: &str) -> String {
        match at(&windows(texts), &now.parse().unwrap()) {
            None => "no window".to_owned(),
            Some(Moment::Open { until }) => format!("open until {}", until.datetime()),
            Some(Moment::Shut { until }) => format!("shut until {}", until.datetime()),
        }
    }

    #[test]
    fn over_midnight_and_within_a_day() {
        let night = ["22:00-06:00"];
        let on = |time: &str| says(&night, &format!("2026-11-21T{time}:00+00:00[UTC]"));
        assert_eq!(on("21:59"), "shut until 2026-11-21T22:00:00");
        assert_eq!(on("22:00"), "open until 2026-11-22T06:00:00");
        assert_eq!(on("00:30"), "open until 2026-11-21T06:00:00");
        assert_eq!(on("06:00"), "shut until 2026-11-21T22:00:00");
        let noon = ["12:00-13:00", "01:00-02:00"];
        assert_eq!(says(&noon, "2026-11-21T12:59:59+00:00[UTC]"), "open until 2026-11-21T13:00:00");
        assert_eq!(says(&noon, "2026-11-21T13:00:00+00:00[UTC]"), "shut until 2026-11-22T01:00:00");
        assert_eq!(says(&[], "2026-11-21T13:00:00+00:00[UTC]"), "no window");
    }

    #[test]
    fn windows_that_meet_are_one() {
        let two = ["22:00-24:00", "00:00-06:00"];
        assert_eq!(says(&two, "2026-11-21T23:00:00+00:00[UTC]"), "open until 2026-11-22T06:00:00");
    }

    #[test]
    fn summer_time_moves_with_the_clock_on_the_wall() {
        // In Berlin 02:00 becomes 03:00 on 29 March 2026, and 03:00 becomes 02:00 on 25 October.
        let night = ["02:30-04:00"];
        assert_eq!(
            says(&night, "2026-03-29T01:59:00+01:00[Europe/Berlin]"),
            "shut until 2026-03-29T03:30:00"
        );
        assert_eq!(
            says(&night, "2026-10-25T02:45:00+01:00[Europe/Berlin]"),
            "open until 2026-10-25T04:00:00"
        );
        let gone = ["02:10-02:50"];
        assert_eq!(says(&gone, "2026-03-29T01:59:00+01:00[Europe/Berlin]"), "shut until 2026-03-29T03:10:00");
    }

    #[test]
    fn what_is_no_window() {
        for text in
            ["", "22:00", "22:00-", "22-06", "24:00-01:00", "22:00-06:60", "22:00-6:00", "+2:00-06:00"]
        {
            assert_eq!(text.parse::<Window>(), Err(WindowError::Form), "{text}");
        }
        assert_eq!("06:00-06:00".parse::<Window>(), Err(WindowError::Empty));
        assert_eq!("00:00-24:00".parse::<Window>(), Err(WindowError::Empty));
        assert_eq!("22:00-06:00".parse::<Window>().unwrap().to_string(), "22:00-06:00");
    }

    proptest! {
        #[test]
        fn it_changes_when_it_says(minutes in proptest::collection::vec((0..1440u32, 0..1440u32), 1..4), s in 0..(400 * 86_400i64)) {
            let clock = |m: u32| format!("{:02}:{:02}", m / 60, m % 60);
            let all: Vec<Window> =
                minutes.iter().filter_map(|(a, b)| format!("{}-{}", clock(*a), clock(*b)).parse().ok()).collect();
            prop_assume!(!all.is_empty());
            let zone = jiff::tz::TimeZone::get("Europe/Berlin").unwrap();
            let now = jiff::Timestamp::from_second(1_770_000_000 + s).unwrap().to_zoned(zone);
            match at(&all, &now).unwrap() {
                Moment::Shut { until } => {
                    prop_assert!(until > now);
                    let before = at(&all, &until.checked_sub(Span::new().seconds(1)).unwrap()).unwrap();
                    let is_shut = matches!(before, Moment::Shut { .. });
                    prop_assert!(is_shut);
                    let then_open = matches!(at(&all, &until).unwrap(), Moment::Open { .. });
                    prop_assert!(then_open);
                }
                Moment::Open { until } => {
                    prop_assert!(until > now);
                    let before = at(&all, &until.checked_sub(Span::new().seconds(1)).unwrap()).unwrap();
                    let is_open = matches!(before, Moment::Open { .. });
                    prop_assert!(is_open);
                }
            }
        }
    }
}
