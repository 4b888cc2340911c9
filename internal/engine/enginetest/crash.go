package enginetest

var crashCases, failureCases, faultRuns []testCase
