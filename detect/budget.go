package detect

import "github.com/postern/postern/flow"

// budget says from which score on a detector should speak up, so that on a usual day no more
// does than people will look at. It counts scores by day and takes the least score that days
// before today would have kept to. What speaks for a score is the estate's own past, so the
// same detector is as quiet in a network where administrators go everywhere as in one where
// nobody does. The score it gives is held between two bounds: an intruder who makes noise on
// purpose cannot raise it further, and a network in which nothing happens does not make it
// cry out at everything.
type budget struct {
	Days [budgetDays][budgetScores]uint16
	Day  int32 // of Days[Day%budgetDays]; 0 while there is none
	From int32 // the first day that counts
}

const (
	budgetDays   = 16
	budgetScores = 128
)

// note counts a score; the day moves on with it.
func (b *budget) note(at flow.Time, score int) {
	b.turn(at)
	n := &b.Days[int(b.Day)%budgetDays][min(max(score, 0), budgetScores-1)]
	count(n)
}

// unnote takes a score back that a higher one takes the place of.
func (b *budget) unnote(at flow.Time, score int) {
	if d := int32(dayOf(at)); d > b.Day-budgetDays && d <= b.Day {
		if n := &b.Days[int(d)%budgetDays][min(max(score, 0), budgetScores-1)]; *n > 0 {
			*n--
		}
	}
}

func (b *budget) turn(at flow.Time) {
	d := int32(dayOf(at))
	if b.Day == 0 {
		b.Day, b.From = d, d
	}
	for b.Day < d {
		if d-b.Day > budgetDays {
			b.Day = d - budgetDays
		}
		b.Day++
		b.Days[int(b.Day)%budgetDays] = [budgetScores]uint16{}
	}
}

// threshold is the least score that at most perDay thousandths a day reached on the days
// before that of at, between low and high; from is the first day that counts. A day on which
// little happens, as on weekends, counts for as little.
func (b *budget) threshold(at flow.Time, from flow.Time, perDayMilli int, low, high int) int {
	b.turn(at)
	first := max(int32(dayOf(from))+1, b.From, b.Day-budgetDays+1)
	if b.Day <= first {
		return high
	}
	all, most := 0, 0
	for d := first; d < b.Day; d++ {
		n := 0
		for _, c := range b.Days[int(d)%budgetDays] {
			n += int(c)
		}
		all, most = all+n, max(most, n)
	}
	n, allowed := 0, max(1, perDayMilli*all/max(most, 1)/1000)
	t := budgetScores
	for ; t > low; t-- {
		for d := first; d < b.Day; d++ {
			n += int(b.Days[int(d)%budgetDays][t-1])
		}
		if n > allowed {
			break
		}
	}
	return min(max(t, low), high)
}
