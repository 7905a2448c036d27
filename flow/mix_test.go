package flow

import "testing"

// TestMix holds Mix to numbers that splitmix64.c gives: its state grows by gamma a call.
func TestMix(t *testing.T) {
	const gamma = 0x9e3779b97f4a7c15
	for state, want := range map[uint64]uint64{
		0:               0xe220a8397b1dcdaf,
		1234567:         6457827717110365317,
		1234567 + gamma: 3203168211198807973,
	} {
		if got := Mix(state); got != want {
			t.Errorf("Mix(%d) is %d; splitmix64 gives %d", state, got, want)
		}
	}
}
