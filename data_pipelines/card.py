def write_card(dataset):
    pass
