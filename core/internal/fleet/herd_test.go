package fleet

const envHerd = "CAPONIER_TEST_HERD"

func herdMain() {}
