// Calendar: days as dates of the proleptic Gregorian calendar, and back.

package change

// Civil gives the proleptic Gregorian date of a day counted from 1970-01-01;
// year 0 is 1 BC. After Howard Hinnant, "chrono-Compatible Low-Level Date
// Algorithms", civil_from_days.
func Civil(days int64) (year int64, month, day int) {
	z := days + 719468
	if z >= 0 && z < 1<<28 {
		y, m, d := civilFast(uint32(z))
		return int64(y), int(m), int(d)
	}
	era := z / 146097
	if z < 0 {
		era = (z - 146096) / 146097
	}
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day = int(doy - (153*mp+2)/5 + 1)
	month = int(mp + 3)
	if month > 12 {
		month -= 12
	}
	year = yoe + era*400
	if month <= 2 {
		year++
	}
	return year, month, day
}

// civilFast is Civil for days counted from 0000-03-01, without 64-bit division:
// three times as fast, and each timestamp needs it. After Cassio Neri and
// Lorenz Schneider, "Euclidean affine functions and their application to
// calendar algorithms" (2023).
func civilFast(n uint32) (year, month, day uint32) {
	n1 := 4*n + 3
	century := n1 / 146097
	n2 := n1%146097 | 3
	p := 2939745 * uint64(n2)
	ofYear := uint32(p) / 2939745 / 4
	n3 := 2141*ofYear + 197913
	year, month, day = 100*century+uint32(p>>32), n3>>16, n3&0xFFFF/2141+1
	if ofYear >= 306 {
		year, month = year+1, month-12
	}
	return year, month, day
}

// Days is the inverse of Civil (days_from_civil).
func Days(year int64, month, day int) int64 {
	if month <= 2 {
		year--
	}
	era := year / 400
	if year < 0 {
		era = (year - 399) / 400
	}
	yoe := year - era*400
	mp := int64(month+9) % 12
	doy := (153*mp+2)/5 + int64(day) - 1
	doe := yoe*365 + yoe/4 - yoe/100 + doy
	return era*146097 + doe - 719468
}
