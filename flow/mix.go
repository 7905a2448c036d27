package flow

// Mix is splitmix64's output for the state v (G. Steele, D. Lea, C. Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014; constants as in S. Vigna's splitmix64.c): a
// bijection in which every bit of v bears on every bit of the result. Ids of records are made
// of it, so it never changes.
func Mix(v uint64) uint64 {
	v += 0x9e3779b97f4a7c15
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}
